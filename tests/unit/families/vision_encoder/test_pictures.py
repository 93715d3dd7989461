"""Pictures in every form that people have them, damaged and hostile ones too."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from transformers.image_utils import load_image
from vision_fixtures import encoded, picture

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.vision_encoder.pictures import Picture, decoded, picture_of

MOST = 1 << 25
TALL = picture(1, 30, 20)


def image(mode: str) -> Image.Image:
    """A picture in one of PIL's modes."""
    rgb = Image.fromarray(TALL)
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(TALL[..., 0]))
        return rgb
    if mode == "PA":
        return rgb.quantize(16)
    return rgb.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("RGB", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("L", "PNG")],
        *[("L", "JPEG"), ("LA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")],
    ],
)
def test_every_mode_is_what_transformers_loads(mode: str, kind: str) -> None:
    data = encoded(image(mode), kind)
    assert np.array_equal(decoded(data, MOST), np.asarray(load_image(Image.open(BytesIO(data)))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(TALL, "JPEG", exif=exif)
    found = decoded(data, MOST)
    assert np.array_equal(found, np.asarray(load_image(Image.open(BytesIO(data)))))
    assert found.shape[:2] == ((30, 20) if orientation < 5 else (20, 30))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_exif_turns_nothing() -> None:
    data = encoded(TALL, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert decoded(data, MOST).shape == (30, 20, 3)


def test_a_palette_with_transparency_and_a_colour_profile() -> None:
    palette = image("P")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(palette, "PNG", transparency=bytes(range(16)), icc_profile=profile)
    assert np.array_equal(decoded(data, MOST), np.asarray(palette.convert("RGB")))


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    grey = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
    found = decoded(encoded(Image.fromarray(grey)), MOST)
    assert found.shape == (40, 30, 3)
    assert found[0, 0, 0] == 0
    assert found[-1, -1, 0] == 255
    assert np.abs(found[..., 1].astype(int) - grey / 257).max() <= 1


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.fromarray(picture(seed, 20, 20)) for seed in range(3)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decoded(data, MOST), np.asarray(frames[0]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        b"\x89PNG\r\n\x1a\n",
        encoded(TALL, "GIF"),
        encoded(TALL, "BMP"),
        encoded(TALL, "TIFF"),
        encoded(TALL)[:60],
        encoded(picture(2, 200, 200))[:4000],
        encoded(picture(2, 200, 200), "JPEG")[:2000],
        encoded(picture(2, 200, 200), "WEBP")[:1000],
    ],
    ids=["empty", "text", "signature", "gif", "bmp", "tiff", "head", "cut-png", "cut-jpeg", "cut-webp"],
)
def test_what_is_no_picture_is_told(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it is no JPEG, PNG or WebP|it cannot be decoded"):
        decoded(data, MOST)


def test_damaged_files_are_answers_or_value_errors(rng: random.Random) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded(picture(3, 64, 64), kind)
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with suppress(ValueError):
                assert decoded(bytes(data), 1 << 20).shape[2] == 3


def bomb(width: int, height: int) -> bytes:
    """A PNG of one colour, which compresses a thousandfold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = zlib.compress((b"\0" + b"\0" * width) * height, 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    data = bomb(side, 8)[:16] + struct.pack(">II", side, side) + bomb(side, 8)[24:]
    data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"pixels|too large"):
        decoded(data, MOST)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_a_large_picture_is_answered_where_it_is_allowed() -> None:
    assert decoded(bomb(10_000, 1_000), MOST).shape == (1_000, 10_000, 3)
    with pytest.raises(ValueError, match=r"10000 x 1000 pixels, 9,999,999 are allowed.*max_pixels"):
        decoded(bomb(10_000, 1_000), 9_999_999)


def test_every_form_is_the_same_picture(tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    file.write_bytes(encoded(TALL))
    forms: list[Any] = [file, str(file), encoded(TALL), bytearray(encoded(TALL)), Image.fromarray(TALL), TALL]
    for form in forms:
        found = picture_of(form)
        assert np.array_equal(found.pixels(MOST), TALL)
        assert np.array_equal(decoded(found.content(), MOST), TALL)
        assert found.name
    assert picture_of(file) == picture_of(encoded(TALL)) == picture_of(str(file))
    assert picture_of(TALL) == picture_of(TALL.copy()) != picture_of(TALL[::-1])
    assert len({picture_of(TALL), picture_of(TALL.copy()), picture_of(file)}) == 2
    assert str(picture_of(TALL)) != str(picture_of(TALL[::-1]))


@pytest.mark.parametrize("channels", [None, 1, 4])
def test_arrays_of_other_channels(channels: int | None) -> None:
    pixels = TALL[..., 0] if channels is None else np.dstack([TALL, TALL])[..., :channels]
    found = picture_of(pixels).pixels(MOST)
    assert found.shape == TALL.shape
    assert np.array_equal(found[..., 0], TALL[..., 0])


@pytest.mark.parametrize("given", [3, None, {}, TALL.astype(np.float32), np.zeros((2, 2, 5), np.uint8), TALL[:0]])
def test_what_is_none_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="is no picture"):
        picture_of(given)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*none\.png"):
        picture_of(tmp_path / "none.png")
    with pytest.raises(TaskProblem, match="cannot be read"):
        Picture(tmp_path / "none.png").content()
