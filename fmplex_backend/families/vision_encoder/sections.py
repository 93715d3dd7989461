"""The encoders of vision backbones: sections `encoder` of task.json, which the Task-API takes as they are."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.errors import TaskRefused
from fmplex_backend.families.spec import Input
from fmplex_backend.families.vision_encoder.inputs import IMAGE, IMAGE_BYTES
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from fmplex_backend.families.vision_encoder.preprocessing import ImageReader, Preprocessor

MAX_SIDE = 2048  # pixels


@dataclass(config=CHECKED, frozen=True)
class _Square:
    side: Annotated[int | None, Field(ge=8, le=MAX_SIDE)] = None

    learns: ClassVar[Literal["nothing", "optionally", "always"]] = "nothing"

    def load(self, directory: Path, preprocessor: Preprocessor, *, whole: bool = False) -> ImageReader:
        """As the runtime calls it; raises TaskRefused where the backbone takes no pictures of that size.

        Args:
            whole: whether pictures are resized to the square whatever their proportions, see `Preprocessor.read`.
        """
        from fmplex_backend.families.vision_encoder.preprocessing import ImageReader

        if problem := preprocessor.problem(self.side):
            raise TaskRefused(directory / "task.json", "encoder.side", *problem)
        return ImageReader(self.reads().tensor.name, preprocessor, self.side, whole=whole)

    def reads(self) -> Input:
        """The input."""
        raise NotImplementedError


@dataclass(config=CHECKED, frozen=True)
class ImageFile(_Square):
    """Pictures are sent as files: JPEG, PNG or WebP, of any size.

    Args:
        side: in pixels, of the square that the backbone sees (the shorter side, where the model's image processor keeps
            proportions); as that processor says by default.
    """

    kind: Literal["image-file"] = field(default="image-file", kw_only=True, repr=False)

    def reads(self) -> Input:
        return IMAGE_BYTES

    def size(self) -> int | None:
        return 1


@dataclass(config=CHECKED, frozen=True)
class ImageArray(_Square):
    """Pictures are sent as pixels, uint8 [h, w, 3], those of one request of one size.

    Args:
        side: in pixels, of the square that the backbone sees (the shorter side, where the model's image processor keeps
            proportions); as that processor says by default.
    """

    kind: Literal["image-array"] = field(default="image-array", kw_only=True, repr=False)

    def reads(self) -> Input:
        return IMAGE

    def size(self) -> int | None:
        return 3
