"""From pictures to what a vision backbone takes, as the model's own image processor does it.

Resizing and cropping run before the request is queued, in the processor's own code. Rescaling and normalising are one
multiplication and one addition, which the pass does on its device: until then a pixel takes a byte and not four.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.vision_encoder.pictures import Array, check_size, decoded

CLOSE = 1e-5  # between the processor's own values and those that a pass computes: float32's last digits
UNCHANGED: Mapping[str, Any] = {"do_resize": False, "do_center_crop": False}  # options for a picture of the right size
PROBE = (40, 52)  # height and width of a picture of noise


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture as the backbone takes it, before it is normalised: [3, h, w]."""

    data: bytes
    shape: tuple[int, int, int]
    dtype: str  # uint8, or float32 where the processor's steps cannot be told apart
    length: int  # tokens
    plain: ClassVar[slice] = slice(None)  # of the states of patches, those that decoders read

    @property
    def values(self) -> npt.NDArray[Any]:
        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)

    @property
    def key(self) -> Hashable:
        """All that its hidden states depend on."""
        return self.shape, self.data

    @property
    def bytes(self) -> int:
        """Of memory."""
        return len(self.data)


class Preprocessor:
    """A Hugging Face image processor on one picture at a time.

    Args:
        processor: of the PIL kind: the other one gives other pixels.
        most: pixels of a picture, before it is resized and while it is.
        patch: side, in pixels, of what becomes a token.
        extra: tokens beside those of patches.
        any_side: whether the backbone takes pictures of another size than the processor makes.
        stride: pixels from one of the backbone's last states to the next.
    """

    def __init__(self, processor: Any, most: int, patch: int, extra: int, *, any_side: bool, stride: int = 1) -> None:
        self.processor, self.most, self.patch, self.extra, self.any_side = processor, most, patch, extra, any_side
        self.stride = stride
        self.scale = float(processor.rescale_factor) if self._does("rescale") else 1.0
        normal = self._does("normalize")
        self.mean = _channels(processor.image_mean if normal else 0.0)
        self.deviation = _channels(processor.image_std if normal else 1.0)
        self.splits = self._splits()

    def read(self, picture: Array, side: int | None = None, *, whole: bool = False) -> Pixels:
        """[h, w, 3] -> pixels; raises ValueError where it cannot be resized in so much memory.

        Args:
            whole: whether all of the picture is resized to the square, its sides out of proportion; else as the
                processor does.
        """
        height, width, _ = picture.shape
        check_size(height, width, self.most)
        if whole:
            picture, sizes = self._squared(picture, self._covered(side or self.own_side)), UNCHANGED
        else:
            sizes = self._sizes(side)
            self._check_resized(height, width, sizes.get("size", self.processor.size))
        later = {"do_rescale": False, "do_normalize": False} if self.splits else {}
        values = self._processed(picture, {**sizes, **later})
        dtype = np.uint8 if self.splits else np.float32
        channels, height, width = values.shape
        length = self.extra + max(1, height // self.patch) * max(1, width // self.patch)
        return Pixels(values.astype(dtype).tobytes(), (channels, height, width), np.dtype(dtype).name, length)

    def normalised(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """[n, 3, h, w] of `Pixels.values` -> what the model takes."""
        if values.dtype != torch.uint8:
            return values.to(dtype)
        mean, deviation = self.mean.to(values.device), self.deviation.to(values.device)
        return ((values.float() * self.scale - mean) / deviation).to(dtype)

    def problem(self, side: int | None) -> tuple[str, str] | None:
        """What is wrong with a side, and the remedy; None where nothing is."""
        if side is None or side == self.own_side:
            return None
        if not self.any_side:
            return f"{side} is not the {self.own_side} pixels that the backbone takes", "Leave it out"
        if side < self.patch:
            return f"{side} is less than a patch of {self.patch} pixels", "Raise it"
        return None

    @property
    def own_side(self) -> int:
        """Of the square that the processor makes; the shorter side of what it makes where that is no square."""
        size = dict(self.processor.size)
        crop = dict(self.processor.crop_size or {}) if self._does("center_crop") else {}
        return int(crop.get("height") or size.get("height") or size.get("shortest_edge") or max(_numbers(size)))

    def _covered(self, side: int) -> int:
        """As much of a side as states stand for: none sees what is left over at the right and at the bottom."""
        return max(self.stride, side - side % self.stride) if self.any_side else side

    def _squared(self, picture: Array, side: int) -> Array:
        """[side, side, 3], by the filter of the processor."""
        from PIL import Image

        resample = getattr(self.processor, "resample", None)
        method = Image.Resampling.BICUBIC if resample is None else Image.Resampling(int(resample))
        return np.asarray(Image.fromarray(picture).resize((side, side), method))

    def _does(self, step: str) -> bool:
        """Whether the processor takes a step; not every one has it."""
        return bool(getattr(self.processor, f"do_{step}", False))

    def _sizes(self, side: int | None) -> dict[str, Any]:
        """The processor's options for another side; the margin that is cropped stays in proportion."""
        if side is None or side == self.own_side:
            return {}
        size = dict(self.processor.size)
        ratio = side / self.own_side
        given: dict[str, Any] = {"size": {name: round(value * ratio) for name, value in size.items() if value}}
        if self._does("center_crop"):
            given["crop_size"] = {"height": side, "width": side}
        return given

    def _check_resized(self, height: int, width: int, size: Mapping[str, Any]) -> None:
        """A strip of 1 x 5000 pixels whose shorter side becomes 256 would take 327 million."""
        shortest = dict(size).get("shortest_edge")
        if not self._does("resize") or not shortest:
            return
        edge = shortest / (getattr(self.processor, "crop_pct", None) or 1.0)
        longest = edge * max(height, width) / min(height, width)
        if edge * longest > self.most:
            raise ValueError(
                f"it has {width} x {height} pixels, and as its shorter side becomes {edge:.0f}, it would have "
                f"{edge * longest:,.0f}, where {self.most:,} are allowed; send a part of it"
            )

    def _processed(self, picture: Array, options: Mapping[str, Any]) -> npt.NDArray[Any]:
        found = self.processor(images=picture, input_data_format="channels_last", return_tensors="np", **options)
        values: npt.NDArray[Any] = found["pixel_values"][0]
        return values

    def _splits(self) -> bool:
        """Whether what the processor does last is a multiplication and an addition, as its settings say."""
        noise = np.random.default_rng(0).integers(0, 256, (*PROBE, 3), dtype=np.uint8)
        whole = self._processed(noise, {})
        bytes_ = self._processed(noise, {"do_rescale": False, "do_normalize": False})
        if bytes_.dtype != np.uint8 or bytes_.shape != whole.shape:
            return False
        own = self.normalised(torch.from_numpy(bytes_)[None], torch.float32)[0].numpy()
        return bool(np.allclose(own, whole, atol=CLOSE))


class ImageReader:
    """The backbone's preprocessor with a task's section."""

    def __init__(self, takes: str, preprocessor: Preprocessor, side: int | None, *, whole: bool = False) -> None:
        self.takes, self.preprocessor, self.side, self.whole = takes, preprocessor, side, whole

    def encode(self, value: Any) -> list[Pixels]:
        """IMAGE_BYTES [n, 1] or IMAGE [n, h, w, 3] -> a row a picture; raises InvalidRequest."""
        pictures: Any = _expect_pixels(value) if self.takes == "IMAGE" else np.asarray(value, np.object_).reshape(-1)
        if not len(pictures):
            raise InvalidRequest(f"{self.takes} holds no pictures; send a first dimension of at least 1")
        return [self._read(position, each) for position, each in enumerate(pictures)]

    def _read(self, position: int, picture: Any) -> Pixels:
        try:
            if self.takes != "IMAGE":
                data = picture if isinstance(picture, bytes) else str(picture).encode("utf-8", "surrogateescape")
                picture = decoded(data, self.preprocessor.most)
            return self.preprocessor.read(picture, self.side, whole=self.whole)
        except ValueError as error:
            raise InvalidRequest(f"{self.takes}[{position}]: {error}") from None


def _expect_pixels(value: Any) -> npt.NDArray[Any]:
    pixels = np.asarray(value)
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape[1:]:
        raise InvalidRequest(
            f"IMAGE is {pixels.dtype} {list(pixels.shape)}; send uint8 [n, height, width, 3], with no side of 0"
        )
    return pixels


def _channels(value: Any) -> Tensor:
    """A number, or one for each channel -> [3 or 1, 1, 1]."""
    return torch.as_tensor(np.atleast_1d(np.asarray(value, dtype=np.float32)))[:, None, None]


def _numbers(size: Mapping[str, Any]) -> list[int]:
    return [int(value) for value in size.values() if value] or [1]
