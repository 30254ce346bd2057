"""Encoded pictures to the arrays that image models were trained on, with Pillow and numpy.

Source: the PIL backend of transformers' image processors; equal to it to the last bit, which the tests hold.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from ipfs_accelerate_node.inference.tasks.picture_settings import PictureSettings, Size

MAX_PICTURE_BYTES = 32 << 20
MAX_PIXELS = 64_000_000  # also of what a picture becomes on the way: a strip one pixel wide grows
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")

# What Pillow's readers let out on damaged files, beside OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,
)


class BadPicture(ValueError):
    """Not a picture that can be read; str() says what is wrong with it."""


def read_picture(data: bytes) -> PIL.Image.Image:
    """An RGB picture, upright as its EXIF says; transparent parts show white; of an animation the first frame.

    Raises BadPicture: not one of FORMATS, damaged, more than MAX_PIXELS.
    """
    if len(data) > MAX_PICTURE_BYTES:
        raise BadPicture(f"longer than {MAX_PICTURE_BYTES >> 20} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF and palettes are no reason to refuse
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            opened = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
            if opened.width * opened.height > MAX_PIXELS:
                raise BadPicture(f"{opened.width} × {opened.height} pixels, at most {MAX_PIXELS:,} are read")
            opened.load()
            return _on_white(PIL.ImageOps.exif_transpose(opened))
    except BadPicture:
        raise
    except PIL.UnidentifiedImageError:
        raise BadPicture(f"not a picture in one of {', '.join(FORMATS)}") from None
    except _DAMAGED as exc:
        raise BadPicture(f"cannot be read ({str(exc)[:120] or type(exc).__name__})") from exc


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    shown = picture.convert("RGBA")
    white = PIL.Image.new("RGBA", shown.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, shown).convert("RGB")


def pixel_values(picture: PIL.Image.Image, settings: PictureSettings) -> NDArray[np.float32]:
    """(3, height, width) of an RGB picture. Raises BadPicture: it would become too large on the way."""
    if settings.resize is not None:
        picture = _resized(picture, settings)
    pixels = np.asarray(picture).transpose(2, 0, 1)
    if settings.warp_from and settings.resize is not None and settings.resize.shortest < settings.warp_from:
        pixels = _cropped(pixels, settings.resize.shortest, settings.resize.shortest)
    if settings.crop is not None:
        pixels = _cropped(pixels, *settings.crop)
    values = pixels.astype(np.float64)
    if settings.rescale is not None:
        values = values * settings.rescale
    scaled = values.astype(np.float32)
    if settings.offset and settings.rescale is not None:
        scaled -= 1
    if settings.mean is not None:
        scaled = _normalised(scaled, settings.mean, settings.std)
    if settings.std_again:
        scaled = _normalised(scaled, (0.0, 0.0, 0.0), settings.std)
    return np.ascontiguousarray(scaled, dtype=np.float32)


def _normalised(values: NDArray[np.float32], mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    middle = np.array(mean, dtype=np.float32)[:, None, None]
    spread = np.array(std, dtype=np.float32)[:, None, None]
    return np.asarray((values - middle) / spread, dtype=np.float32)


def _resized(picture: PIL.Image.Image, settings: PictureSettings) -> PIL.Image.Image:
    size = settings.resize
    assert size is not None
    height, width = _target(size, picture.height, picture.width, settings)
    if height * width > MAX_PIXELS or min(height, width) < 1:
        raise BadPicture(f"{picture.width} × {picture.height} pixels become {width} × {height} before cropping")
    return picture.resize((width, height), resample=PIL.Image.Resampling(settings.resample))


def _target(size: Size, height: int, width: int, settings: PictureSettings) -> tuple[int, int]:
    """(height, width) to resize to."""
    if settings.warp_from:  # ConvNext: small sizes keep the shape and are cropped, large ones are warped
        if size.shortest >= settings.warp_from:
            return size.shortest, size.shortest
        return _by_short_edge(int(size.shortest / settings.crop_part), height, width)
    if size.shortest and size.longest:
        return _between(height, width, size.shortest, size.longest)
    if size.shortest:
        return _by_short_edge(size.shortest, height, width)
    return size.height, size.width


def _by_short_edge(edge: int, height: int, width: int) -> tuple[int, int]:
    short, long = (width, height) if width <= height else (height, width)
    grown = int(edge * long / short)
    return (grown, edge) if width <= height else (edge, grown)


def _between(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """The short edge as wanted, unless the long one would pass its limit."""
    edge: float = shortest
    if max(height, width) / min(height, width) * shortest > longest:
        edge = longest * min(height, width) / max(height, width)
    rounded = round(edge)
    if min(height, width) == rounded:
        return height, width
    if width < height:
        return int(edge * height / width), rounded
    return rounded, int(edge * width / height)


def _cropped(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle; what lies outside of the picture is black."""
    _, tall, wide = pixels.shape
    if tall < height or wide < width:
        room = np.zeros((3, max(tall, height), max(wide, width)), dtype=np.uint8)
        top, left = math.ceil((room.shape[1] - tall) / 2), math.ceil((room.shape[2] - wide) / 2)
        room[:, top : top + tall, left : left + wide] = pixels
        # the offset is that of the original picture, as transformers has it
        top, left = (tall - height) // 2 + top, (wide - width) // 2 + left
        return room[:, max(0, top) : top + height, max(0, left) : left + width]
    top, left = (tall - height) // 2, (wide - width) // 2
    return pixels[:, top : top + height, left : left + width]
