"""The same pixels as AutoImageProcessor makes, of every picture that can be had."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from vision_fixtures import MODELS, SIDE, encoded, picture, save_vision, tiny_vision, vision_runtime

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.vision_encoder.preprocessing import ImageReader, Preprocessor
from fmplex_backend.families.vision_encoder.runtime import VisionEncoderRuntime

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (3, 2), (3, 3), (4, 4), (32, 32), (36, 36), (31, 200), (300, 40), (257, 255)]


@cache
def directory_of(kind: str) -> Path:
    return save_vision(Path(mkdtemp()), kind)


@cache
def runtime_of(kind: str) -> VisionEncoderRuntime:
    return vision_runtime(directory_of(kind))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_processor(kind: str, shape: tuple[int, int]) -> None:
    preprocessor = runtime_of(kind).preprocessor
    assert preprocessor.splits
    processor = AutoImageProcessor.from_pretrained(directory_of(kind))
    pixels = picture(sum(shape), *shape)
    want = processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    row = preprocessor.read(pixels)
    found = preprocessor.normalised(torch.from_numpy(row.values.copy())[None], torch.float32)[0].numpy()
    assert found.shape == want.shape == (3, SIDE, SIDE)
    assert np.abs(found - want).max() < 1e-5


def test_a_processor_whose_steps_cannot_be_told_apart_is_used_whole() -> None:
    _, processor = tiny_vision("vit")

    class Odd(type(processor)):  # type: ignore[misc]
        def normalize(self, image: Any, mean: Any, std: Any, **options: Any) -> Any:
            return super().normalize(image, mean, std, **options) ** 2

    odd = Odd(**processor.to_dict())
    preprocessor = Preprocessor(odd, 1 << 20, 8, 1, any_side=True)
    assert not preprocessor.splits
    row = preprocessor.read(picture(1))
    want = odd(images=Image.fromarray(picture(1)), return_tensors="np")["pixel_values"][0]
    assert row.dtype == "float32"
    assert np.array_equal(preprocessor.normalised(torch.from_numpy(row.values.copy())[None], torch.float32)[0], want)


def test_another_side_keeps_the_margin_in_proportion() -> None:
    preprocessor = runtime_of("registers").preprocessor  # 36 pixels, cropped to 32
    row = preprocessor.read(picture(2, 100, 80), 64)
    want = preprocessor.processor(
        images=Image.fromarray(picture(2, 100, 80)),
        size={"shortest_edge": 72},
        crop_size={"height": 64, "width": 64},
        do_rescale=False,
        do_normalize=False,
        return_tensors="np",
    )["pixel_values"][0]
    assert row.length == 5 + 64
    assert np.array_equal(row.values, want)


def test_all_of_a_whole_picture_is_seen_whatever_the_side() -> None:
    preprocessor = runtime_of("registers").preprocessor  # patches of 8 pixels
    whole = preprocessor.read(picture(2, 100, 80), 44, whole=True)
    assert np.array_equal(whole.values, preprocessor.read(picture(2, 100, 80), 40, whole=True).values)
    assert preprocessor.read(picture(2, 100, 80), 44).shape == (3, 44, 44)


def test_sides_that_a_backbone_does_not_take() -> None:
    preprocessor = runtime_of("vit").preprocessor
    fixed = Preprocessor(preprocessor.processor, 1 << 20, 8, 1, any_side=False)
    assert fixed.problem(None) is None
    assert fixed.problem(SIDE) is None
    assert fixed.problem(48) == ("48 is not the 32 pixels that the backbone takes", "Leave it out")
    assert preprocessor.problem(48) is None
    coarse = Preprocessor(preprocessor.processor, 1 << 20, 16, 1, any_side=True)
    assert coarse.problem(8) is not None


def test_a_strip_that_would_become_huge_is_refused() -> None:
    preprocessor = runtime_of("registers").preprocessor
    assert preprocessor.read(picture(1, 1, 1000)).length == 5 + 16
    with pytest.raises(ValueError, match=r"1 x 100000 pixels, and as its shorter side becomes 36"):
        preprocessor.read(np.zeros((100_000, 1, 3), dtype=np.uint8))
    assert runtime_of("vit").preprocessor.read(np.zeros((100_000, 1, 3), dtype=np.uint8)).length == 1 + 16


def test_bytes_and_pixels_are_read_alike() -> None:
    preprocessor = runtime_of("vit").preprocessor
    pictures = [picture(seed) for seed in range(3)]
    files, arrays = (ImageReader(takes, preprocessor, None) for takes in ("IMAGE_BYTES", "IMAGE"))
    sent = np.array([[encoded(each)] for each in pictures], dtype=np.object_)
    one, other = files.encode(sent), arrays.encode(np.stack(pictures))
    assert [row.key for row in one] == [row.key for row in other]
    assert one[0].key != one[1].key
    assert one[0].bytes == 3 * SIDE * SIDE


@pytest.mark.parametrize(
    ("takes", "value", "says"),
    [
        ("IMAGE", np.zeros((2, 4, 4), np.uint8), "send uint8"),
        ("IMAGE", np.zeros((1, 4, 4, 1), np.uint8), "send uint8"),
        ("IMAGE", np.zeros((1, 4, 4, 3), np.float32), "send uint8"),
        ("IMAGE", np.zeros((1, 0, 4, 3), np.uint8), "no side of 0"),
        ("IMAGE", np.zeros((0, 4, 4, 3), np.uint8), "no pictures"),
        ("IMAGE", np.zeros((1, 6000, 6000, 3), np.uint8), "IMAGE[0]: it has 6000 x 6000 pixels"),
        ("IMAGE_BYTES", np.zeros((0, 1), np.object_), "no pictures"),
        ("IMAGE_BYTES", np.array([[encoded(picture(1))], [b"x"]], np.object_), "IMAGE_BYTES[1]: it is no JPEG"),
        ("IMAGE_BYTES", np.array([["text"]], np.object_), "IMAGE_BYTES[0]: it is no JPEG"),
    ],
)
def test_what_cannot_be_read_is_an_invalid_request(takes: str, value: Any, says: str) -> None:
    reader = ImageReader(takes, runtime_of("vit").preprocessor, None)
    with pytest.raises(InvalidRequest) as raised:
        reader.encode(value)
    assert says in str(raised.value)
