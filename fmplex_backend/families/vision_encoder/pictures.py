"""Pictures as people have them (files, bytes, PIL's, arrays), and as pixels: RGB, upright, 8 bits.

Pillow is imported when it is needed: clients that send files do without.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.families.given import Given

Array = npt.NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LARGE_PIXELS = 1 << 22  # pictures above this are decoded one at a time
ORIENTATION = 0x0112  # EXIF's tag
_one_large = threading.Lock()


class Picture(Given):
    """A picture. See `Given`.

    Args:
        source: a JPEG, PNG or WebP file, the bytes of one, or pixels [h, w, 3].
    """

    noun = "picture"

    def _hashed(self, values: Array) -> bytes:
        return f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes()

    def _measure(self, values: Array) -> str:
        height, width, _ = values.shape
        return f"{width} x {height} pixels"

    def _encoded(self, values: Array) -> bytes:
        from PIL import Image

        stream = BytesIO()
        Image.fromarray(values).save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    def size(self) -> tuple[int, int]:
        """Height and width, upright; of a file, its header is read. Raises ValueError, or TaskProblem as `content`."""
        if isinstance(self.source, np.ndarray):
            return self.source.shape[0], self.source.shape[1]
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(BytesIO(self.content()), formats=FORMATS) as image:
                width, height = image.size
                return (width, height) if _swaps_sides(image) else (height, width)
        except UnidentifiedImageError:
            raise ValueError(f"{self.name} is no JPEG, PNG or WebP file, or a damaged one") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"{self.name} is too large: {error}") from None
        except OSError as error:  # a header that is cut off
            raise ValueError(f"{self.name} is damaged: {error}") from None

    def pixels(self, most: int) -> Array:
        """[h, w, 3]; raises ValueError, or TaskProblem where there is no such file."""
        if isinstance(self.source, np.ndarray):
            height, width, _ = self.source.shape
            check_size(height, width, most)
            return self.source
        return decoded(self.content(), most)


def picture_of(given: Any) -> Picture:
    """Of a path, bytes, a PIL image or an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]; raises ValueError."""
    if isinstance(given, Picture):
        return given
    if isinstance(given, (bytes, bytearray)):
        return Picture(bytes(given))
    if isinstance(given, (str, Path)):
        if not Path(given).is_file():
            raise ValueError(f"there is no file {given}. Correct the path")
        return Picture(Path(given))
    if hasattr(given, "convert") and hasattr(given, "size"):  # PIL's
        return Picture(_rgb(given))
    return Picture(_from_array(given))


def _from_array(given: Any) -> Array:
    pixels = np.asarray(given)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        kind = f"an array of {pixels.dtype} {list(pixels.shape)}" if isinstance(given, np.ndarray) else repr(given)[:80]
        raise ValueError(f"{kind} is no picture. Give a path, bytes, a PIL image, or uint8 [h, w, 3]")
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    return np.ascontiguousarray(pixels[..., :3])


def check_size(height: int, width: int, most: int) -> None:
    """Raise ValueError for a picture of more pixels than may be."""
    if height * width > most:
        raise ValueError(
            f"it has {width} x {height} pixels, {most:,} are allowed; send a smaller one, or raise the backbone's "
            "parameter max_pixels"
        )


def decoded(data: bytes, most: int) -> Array:
    """A file's pixels [h, w, 3]: its first frame, as its EXIF orientation says, without alpha; raises ValueError.

    They are those of transformers' `load_image`, but that 16-bit greys are scaled, not cut off. The size is checked
    before any of it is decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            check_size(height, width, most)
            with _one_large if width * height > LARGE_PIXELS else nullcontext():
                return _rgb(image)
    except UnidentifiedImageError:
        raise ValueError("it is no JPEG, PNG or WebP file, or a damaged one") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"it is too large: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them
        problem = str(error).rstrip(".")
        known = isinstance(error, ValueError) and problem.startswith("it ")
        raise ValueError(problem if known else f"it cannot be decoded: {problem or type(error).__name__}") from None


def _rgb(image: Any) -> Array:
    """A PIL image's pixels [h, w, 3]."""
    from PIL import Image

    image.load()
    if (turn := _turns(image)) is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):  # 16 bits
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF)
        return _from_array(((grey + 128) // 257).astype(np.uint8))
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    rgb: Image.Image = image if image.mode == "RGB" else image.convert("RGB")
    return np.array(rgb)


def _swaps_sides(image: Any) -> bool:
    """Whether turning it upright makes its width its height."""
    from PIL import Image

    method = Image.Transpose
    return _turns(image) in (method.TRANSPOSE, method.ROTATE_270, method.TRANSVERSE, method.ROTATE_90)


def _turns(image: Any) -> Any:
    """The transposition that makes it upright, if any; none where its EXIF data are damaged."""
    from PIL import Image

    method = Image.Transpose
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises whatever damaged data make it
        return None
    return {
        2: method.FLIP_LEFT_RIGHT,
        3: method.ROTATE_180,
        4: method.FLIP_TOP_BOTTOM,
        5: method.TRANSPOSE,
        6: method.ROTATE_270,
        7: method.TRANSVERSE,
        8: method.ROTATE_90,
    }.get(orientation)
