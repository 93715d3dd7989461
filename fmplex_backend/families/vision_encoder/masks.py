"""What a map is to show of a picture, as people have it: the numbers of labels, or values, of each pixel.

Pillow is imported when a file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.vision_encoder.pictures import Picture

T = TypeVar("T", bound=np.generic)
Numbers = npt.NDArray[np.int16]
Values = npt.NDArray[np.float32]

SUFFIXES = (".png", ".npy")
UNLABELLED = 255  # in masks, as datasets for segmentation have it, where it is no label's number
UNKNOWN = -1  # in its place here
PROPORTION = 1.03  # by which the aspect ratios of a picture and its mask differ at most: small masks are rounded


def numbers_of(given: Any, labels: int) -> Numbers:
    """The number of each pixel's label [h, w], UNKNOWN where it has none; raises ValueError.

    Args:
        given: a PNG file (8 or 16 bits of one channel, or a palette, of which the index counts), a file of numpy's, a
            PIL image or an array [h, w] of whole numbers; below 0 a pixel has no label.
        labels: how many there are; 0: any number.
    """
    pixels = _pixels(given)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"its values are {pixels.dtype}, and a mask has the whole numbers of labels")
    found: npt.NDArray[np.int64] = pixels.astype(np.int64)
    if labels <= UNLABELLED:
        found[found == UNLABELLED] = UNKNOWN
    most = labels or UNLABELLED
    if found.size and int(found.max()) >= most:
        raise ValueError(f"it has the number {int(found.max())}, and the labels have 0 to {most - 1}")
    return np.maximum(found, UNKNOWN).astype(np.int16)


def values_of(given: Any, scale: float) -> Values:
    """The value of each pixel [h, w], NaN where it is not known; raises ValueError.

    Args:
        given: in the forms of `numbers_of`, or an array of floating-point numbers. Of whole numbers 0 is not known.
        scale: what whole numbers are multiplied by.
    """
    pixels = _pixels(given)
    if np.issubdtype(pixels.dtype, np.floating):
        found = pixels.astype(np.float32)
        return np.where(np.isfinite(found), found, np.float32(np.nan))
    if not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"its values are {pixels.dtype}, not numbers")
    return np.where(pixels == 0, np.float32(np.nan), pixels.astype(np.float32) * np.float32(scale))


def resized(pixels: npt.NDArray[Any], size: tuple[int, ...]) -> npt.NDArray[Any]:
    """[h, w] -> `size` (height and width), by the nearest pixel."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, pixels.shape, strict=True)
    )
    found: npt.NDArray[Any] = pixels[rows[:, None], columns]
    return found


def read_maps(rows: Rows, read: Callable[[Any], npt.NDArray[T]]) -> Iterator[npt.NDArray[T]]:
    """What `read` makes of each row's map, of its own size, which may be large: one at a time; raises TaskProblem."""
    for place, label in enumerate(rows.labels):
        try:
            pixels = read(label)
            check_proportions(rows.items[place], pixels.shape)
        except ValueError as error:
            raise _problem_of(place, rows, error) from None
        yield pixels


def check_proportions(picture: Picture, shape: tuple[int, ...]) -> None:
    """Raise ValueError where a mask is none of its whole picture."""
    height, width = picture.size()
    ratio = (shape[0] * width) / (shape[1] * height)
    if not 1 / PROPORTION <= ratio <= PROPORTION:
        raise ValueError(f"it has {shape[1]} x {shape[0]} pixels, and its picture {width} x {height}: turned, or cut")


def _problem_of(place: int, rows: Rows, error: ValueError) -> TaskProblem:
    """Of a row's mask."""
    label = rows.labels[place]
    name = f"{label}" if isinstance(label, Path) else "its mask"
    return TaskProblem(f"{rows.source}, row {place}: {name}: {error}. Correct it, or leave the row out")


def _pixels(given: Any) -> npt.NDArray[Any]:
    """[h, w] as they are stored."""
    if isinstance(given, Path):
        given = _read(given)
    if hasattr(given, "getbands"):  # PIL's
        bands = given.getbands()
        if len(bands) > 1:
            raise ValueError(f"it is {''.join(bands)}, and a mask has one channel")
        given = np.asarray(given)
    pixels = np.asarray(given)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or not pixels.size or pixels.dtype == np.object_:
        raise ValueError(f"it is {pixels.dtype} {list(pixels.shape)}, and a mask is a picture of one channel [h, w]")
    return pixels


def _read(file: Path) -> Any:
    if file.suffix.lower() == ".npy":
        try:
            return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"it cannot be read: {error}") from None
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG",)) as image:
            image.load()
            return image.copy()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them
        raise ValueError(f"it cannot be read as PNG: {error or type(error).__name__}") from None
