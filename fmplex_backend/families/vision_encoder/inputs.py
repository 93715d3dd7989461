"""The inputs of vision encoders: IMAGE_BYTES (a file's bytes) and IMAGE (pixels)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.vision_encoder.pictures import SUFFIXES, Picture, picture_of
from fmplex_backend.interface import TensorSpec

PROBE_SIDE = 3  # pixels: as many as channels, which must not be mixed up
NO_LIMIT = 1 << 30  # pixels; clients may send what they have


class _PictureInput:
    """Pictures in any form; `Picture` is the item."""

    columns: Literal["one", "several"] = "one"
    default_column = "image"
    files: Sequence[str] = SUFFIXES

    def is_item(self, data: Any) -> bool:
        if isinstance(data, (str, Path)):
            return Path(data).suffix.lower() in SUFFIXES
        if isinstance(data, np.ndarray):
            return data.ndim < 4
        return isinstance(data, (Picture, bytes, bytearray)) or hasattr(data, "convert")

    def item(self, cell: Any) -> tuple[Picture, list[tuple[int, int]]]:
        return picture_of(cell), []

    def parse(self, argument: str) -> Picture:
        try:
            return picture_of(argument)
        except ValueError as error:
            raise TaskProblem(str(error)) from None

    def probe(self, size: int | None) -> Picture:
        ramp = np.arange(PROBE_SIDE * PROBE_SIDE * 3, dtype=np.uint8)
        return Picture(ramp.reshape(PROBE_SIDE, PROBE_SIDE, 3))

    def show(self, item: Any) -> str:
        return _picture(item).name


class ImageBytesInput(_PictureInput):
    """IMAGE_BYTES [1]: a JPEG, PNG or WebP file."""

    tensor = TensorSpec("IMAGE_BYTES", "TYPE_STRING", (1,))

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        """[n, 1]."""
        cells = np.empty((len(items), 1), dtype=np.object_)
        cells[:, 0] = [_picture(item).content() for item in items]
        return cells


class ImageInput(_PictureInput):
    """IMAGE [h, w, 3], uint8: pixels; those of one request are of one size."""

    tensor = TensorSpec("IMAGE", "TYPE_UINT8", (-1, -1, 3))

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        """[n, h, w, 3]."""
        found = []
        for item in items:
            picture = _picture(item)
            try:
                found.append(picture.pixels(NO_LIMIT))
            except ValueError as error:
                raise TaskProblem(f"{picture.name}: {error}") from None
        sizes = {each.shape[:2] for each in found}
        if len(sizes) > 1:
            shown = ", ".join(f"{width} x {height}" for height, width in sorted(sizes)[:4])
            raise TaskProblem(
                f"pictures of one request must be of one size where the task reads IMAGE, these are of {shown}. Ask "
                "one by one, or give the task the encoder ImageFile, which takes any"
            )
        return np.stack(found)


def _picture(item: Any) -> Picture:
    try:
        return picture_of(item)
    except ValueError as error:
        raise TaskProblem(f"the task reads pictures: {error}") from None


IMAGE_BYTES, IMAGE = ImageBytesInput(), ImageInput()
