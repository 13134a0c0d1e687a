"""Read any image file as (H, W, 3) uint8 RGB, the way a viewer shows it.

OpenCV (libjpeg-turbo, libpng) decodes JPEG and plain PNG files; Pillow decodes what OpenCV would
lose something of (transparency) and all other formats. Rules:

- EXIF orientation is applied; width and height are those of the upright image.
- Grayscale is repeated over the three channels; palettes are looked up; CMYK is converted.
- 16 bits a channel are scaled to 8 (the high byte is kept), never cut off.
- Transparent pixels are laid over white, as viewers do: the colours hidden under alpha 0 are
  arbitrary.
- A file that ends early is refused. OpenCV before release 5 fills what is missing with gray and
  says nothing, so the end marker is looked for here. (Damage inside a JPEG that has its end
  leaves wrong pixels, which no decoder can tell from right ones; PNG has checksums.)
"""

from __future__ import annotations

import io
import os
import warnings
import zlib

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_ALPHA_COLOR_TYPES = (4, 6)  # gray and RGB with an alpha channel
_ORIENTATIONS_ON_SIDE = (5, 6, 7, 8)  # of EXIF: width and height change places
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")  # of Pillow


class BadSampleError(ValueError):
    """A sample that cannot be read; what happens then is the data policy's choice."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file -> (H, W, 3) uint8 RGB, contiguous.

    Raises:
        BadSampleError: Names the file and why it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BadSampleError(f"{os.fspath(path)}: {error.strerror or error}") from error
    return decode_image(data, name=os.fspath(path))


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width in pixels that `read_image` would give, from the head of the file.

    Raises:
        BadSampleError: Names the file and why it is no image.
    """
    try:
        with Image.open(path) as image:
            if image.format == "TIFF":
                image.load()  # Pillow turns TIFF by itself
            width, height = image.size
            _leave_only_exif(image)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _ORIENTATIONS_ON_SIDE
    except Image.DecompressionBombError:  # Pillow's limit, which OpenCV does not have
        height, width = read_image(path).shape[:2]
        return height, width
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadSampleError(f"{os.fspath(path)}: cannot be read: {error}") from error
    return (width, height) if turned else (height, width)


def decode_image(data: bytes, *, name: str) -> np.ndarray:
    """Decode the bytes of an image file -> (H, W, 3) uint8 RGB, contiguous.

    Args:
        name: What error messages call these bytes.

    Raises:
        BadSampleError: Names `name` and why it cannot be read.
    """
    if not data:
        raise BadSampleError(f"{name}: the file is empty")
    if data.startswith(b"\xff\xd8"):
        _check_jpeg_end(data, name)
        image = _decode_opencv(data, name)
    elif data.startswith(_PNG_SIGNATURE):
        plain = _check_png(data, name)
        image = _decode_opencv(data, name) if plain else _decode_pillow(data, name)
    else:
        image = _decode_pillow(data, name)
    return image


def _decode_opencv(data: bytes, name: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise BadSampleError(f"{name}: cannot be decoded: {error.err}") from error
    if image is None:
        raise BadSampleError(f"{name}: cannot be decoded: {len(data)} bytes, damaged or truncated")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_pillow(data: bytes, name: str) -> np.ndarray:
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")  # odd metadata; large images are refused all the same
            image.load()
            # 16-bit PGM is held in 32 bits, and by releases of Pillow before 11 so is PNG.
            held_in_32 = (image.format, image.mode) in (("PNG", "I"), ("PPM", "I"))
            sixteen_bits = image.mode.startswith("I;16") or held_in_32
            _leave_only_exif(image)
            upright = ImageOps.exif_transpose(image)
            rgb = _scale_16_bits(upright) if sixteen_bits else _to_rgb(upright, name)
            return np.ascontiguousarray(rgb)
    except BadSampleError:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadSampleError(
            f"{name}: not an image: {len(data)} bytes that start with {data[:16]!r}"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"{name}: cannot be decoded: {error}") from error


def _leave_only_exif(image: Image.Image) -> None:
    """OpenCV reads JPEG and most PNG, and finds the orientation in EXIF alone: so must Pillow."""
    if image.format in ("JPEG", "MPO", "PNG"):
        for other in ("XML:com.adobe.xmp", "xmp", "Raw profile type exif"):
            image.info.pop(other, None)


def _scale_16_bits(image: Image.Image) -> np.ndarray:
    gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise BadSampleError(
            f"{name}: 32 bits a pixel (mode {image.mode}) have no known range: expected 8 or 16"
        )
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        layered = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(layered, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _check_jpeg_end(data: bytes, name: str) -> None:
    """Look for the end-of-image marker after the start of the first scan.

    Not simply anywhere: an embedded thumbnail has a marker of its own. Within a scan, a byte 0xff
    of data is followed by 0x00, so that 0xff 0xd9 is the marker itself.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            break
        if marker == 0xFF:  # padding before a marker
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if data.find(b"\xff\xd9", position) < 0:
        raise BadSampleError(f"{name}: truncated JPEG: {len(data)} bytes, no end-of-image marker")


def _check_png(data: bytes, name: str) -> bool:
    """Check the chunks' lengths and checksums; True if OpenCV loses nothing of this file.

    It drops transparency, and older releases ignore the orientation.
    """
    position, plain, kind = len(_PNG_SIGNATURE), True, b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            raise BadSampleError(f"{name}: truncated PNG: {len(data)} bytes, no end chunk")
        body = memoryview(data)[position + 4 : end - 4]
        if zlib.crc32(body) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadSampleError(f"{name}: damaged PNG: wrong checksum of chunk {kind!r}")
        if kind in (b"tRNS", b"eXIf") or (kind == b"IHDR" and body[13] in _PNG_ALPHA_COLOR_TYPES):
            plain = False
        position = end
    return plain
