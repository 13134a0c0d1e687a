import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from predet.data.images import BadSampleError, decode_image, read_image, read_image_size


@pytest.fixture(scope="module")
def photograph():
    """Smooth colours, different in all four corners, no two sides alike."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(coarse, (90, 60), interpolation=cv2.INTER_CUBIC)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_pixels(photograph, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encode(photograph, kind, **options), name="x")
    np.testing.assert_array_equal(image, photograph)
    assert (image.dtype, image.flags.c_contiguous) == (np.uint8, True)


def test_jpeg_agrees_with_pillow(photograph, tmp_path):
    data = encode(photograph, "JPEG", quality=95)
    (tmp_path / "x.jpg").write_bytes(data)
    image = read_image(tmp_path / "x.jpg")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(image.astype(int) - expected).max() <= 2
    assert np.abs(image[..., ::-1].astype(int) - expected).mean() > 20  # not BGR


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photograph, kind, orientation):
    data = encode(photograph, kind, exif=exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    image = decode_image(data, name="x")
    assert image.shape == ((90, 60, 3) if orientation > 4 else (60, 90, 3))
    assert np.abs(image.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_read_from_the_head_is_that_of_the_image(photograph, tmp_path, kind, orientation):
    path = tmp_path / "x"
    path.write_bytes(encode(photograph, kind, exif=exif(orientation)))
    assert read_image_size(path) == read_image(path).shape[:2]
    path.write_bytes(b"no image")
    with pytest.raises(BadSampleError, match="x: cannot be read"):
        read_image_size(path)


def test_orientation_told_elsewhere_than_in_exif_is_not_heard(photograph, tmp_path):
    """OpenCV does not know of it; so neither size nor pixels may."""
    xmp = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
        xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
        xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    deep = np.linspace(0, 65535, 60 * 90).astype(np.uint16).reshape(60, 90)
    files = {
        "x.jpg": encode(photograph, "JPEG", xmp=xmp),
        "x.png": encode(photograph, "PNG", pnginfo=text),
        "deep.png": encode(deep, "PNG", pnginfo=text),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with Image.open(tmp_path / name) as image:
            assert image.getexif()[0x0112] == 6, name  # Pillow hears it
        assert read_image_size(tmp_path / name) == read_image(tmp_path / name).shape[:2] == (60, 90)


def test_size_and_pixels_of_large_images_are_read_alike(photograph, tmp_path, monkeypatch):
    for kind in ("jpg", "webp"):
        Image.fromarray(photograph).save(tmp_path / f"large.{kind}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photograph.shape[0] * photograph.shape[1] // 3)
    size = read_image(tmp_path / "large.jpg").shape[:2]
    assert read_image_size(tmp_path / "large.jpg") == size == photograph.shape[:2]
    for read in (read_image, read_image_size):  # refused by both
        with pytest.raises(BadSampleError, match=r"large.webp: .* exceeds limit"):
            read(tmp_path / "large.webp")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_grayscale_is_repeated_over_the_channels(photograph, kind):
    gray = photograph[..., 0]
    image = decode_image(encode(gray, kind), name="x")
    assert image.shape == (60, 90, 3)
    tolerance = 8 if kind == "JPEG" else 0
    assert np.abs(image.astype(int) - gray[..., None]).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_palettes_are_looked_up(photograph, kind):
    indexed = Image.fromarray(photograph).quantize(32)
    image = decode_image(encode(indexed, kind), name="x")
    np.testing.assert_array_equal(image, np.asarray(indexed.convert("RGB")))


def test_bilevel_images_are_black_and_white(photograph):
    mask = photograph[..., 0] > 128
    for kind in ("PNG", "TIFF"):
        image = decode_image(encode(Image.fromarray(mask), kind), name="x")
        np.testing.assert_array_equal(image[..., 1], mask * 255)


def test_sixteen_bits_are_scaled_not_cut_off():
    deep = np.linspace(0, 65535, 60 * 90).astype(np.uint16).reshape(60, 90)
    color = np.stack([deep, deep[::-1], deep[:, ::-1]], axis=-1)
    files = {
        "gray png": encode(deep, "PNG"),
        "gray tiff": encode(deep, "TIFF"),
        "gray png with orientation": encode(deep, "PNG", exif=exif(1)),
    }
    for name, data in files.items():
        expected = np.repeat((deep >> 8)[..., None], 3, axis=2)
        np.testing.assert_array_equal(decode_image(data, name=name), expected, err_msg=name)
    for most in (65535, 4095):
        head = f"P5\n90 60\n{most}\n".encode()
        values = (deep.astype(np.int64) * most // 65535).astype(">u2")
        image = decode_image(head + values.tobytes(), name="x.pgm")
        assert np.abs(image[..., 0].astype(int) - (deep >> 8)).max() <= 1
    color_png = cv2.imencode(".png", color[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(color_png, name="color png"), color >> 8)


def test_32_bit_pixels_are_refused_not_guessed():
    data = encode(np.ones((4, 4), np.float32), "TIFF")
    with pytest.raises(BadSampleError, match=r"x\.tif: 32 bits a pixel"):
        decode_image(data, name="x.tif")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_lie_over_white(photograph, kind):
    alpha = np.zeros((60, 90), np.uint8)
    alpha[:, 30:60], alpha[:, 60:] = 128, 255
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encode(np.dstack([photograph, alpha]), kind, **options)
    share = alpha[..., None] / 255
    expected = photograph * share + 255 * (1 - share)
    image = decode_image(data, name="x")
    assert np.abs(image - expected).max() <= 1
    np.testing.assert_array_equal(image[:, :30], 255)
    np.testing.assert_array_equal(image[:, 60:], photograph[:, 60:])


def test_transparency_of_gray_and_of_palettes_lies_over_white(photograph):
    gray_alpha = np.dstack([photograph[..., 0], np.zeros((60, 90), np.uint8)])
    assert (decode_image(encode(Image.fromarray(gray_alpha, "LA"), "PNG"), name="x") == 255).all()
    indexed = Image.fromarray(np.zeros((6, 6), np.uint8), "P")
    indexed.putpalette([200, 0, 0])
    data = encode(indexed, "PNG", transparency=0)
    assert (decode_image(data, name="x") == 255).all()


def test_cmyk_jpeg_agrees_with_pillow(photograph):
    data = encode(Image.fromarray(photograph).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_image(data, name="x") - expected).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.98])
def test_truncated_files_are_refused(photograph, kind, part):
    noisy = np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)
    data = encode(noisy, kind)
    decode_image(data, name="whole")
    with pytest.raises(BadSampleError, match=r"cut\.jpg: "):
        decode_image(data[: int(len(data) * part)], name="cut.jpg")


def test_truncated_jpeg_is_found_by_its_missing_end(photograph):
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        data = encode(photograph, "JPEG", **options)
        for cut in range(len(data) // 2, len(data) - 1):
            with pytest.raises(BadSampleError, match=r"truncated JPEG: .* no end-of-image marker"):
                decode_image(data[:cut], name="x")


def test_end_marker_of_a_thumbnail_does_not_count(photograph):
    data, thumbnail = encode(photograph, "JPEG"), encode(photograph[:8, :8], "JPEG")
    length = struct.pack(">H", len(thumbnail) + 2)
    with_thumbnail = data[:2] + b"\xff\xe1" + length + thumbnail + data[2:]
    decode_image(with_thumbnail, name="x")
    with pytest.raises(BadSampleError, match="no end-of-image marker"):
        decode_image(with_thumbnail[:-20], name="x")


def test_bytes_after_the_end_of_a_jpeg_are_allowed(photograph):
    data = encode(photograph, "JPEG")
    np.testing.assert_array_equal(
        decode_image(data + b"left over" * 100, name="x"), decode_image(data, name="x")
    )


def test_a_zero_filled_tail_counts_as_truncated(photograph):
    data = encode(photograph, "JPEG")
    with pytest.raises(BadSampleError, match="no end-of-image marker"):
        decode_image(data[:-400] + bytes(400), name="x")


def test_png_with_a_wrong_checksum_is_refused(photograph):
    data = bytearray(encode(photograph, "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadSampleError, match="damaged PNG: wrong checksum of chunk b'IDAT'"):
        decode_image(bytes(data), name="x")


def test_png_with_bad_pixels_under_a_right_checksum_is_refused():
    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"no zlib")
    with pytest.raises(BadSampleError, match=r"x\.png: cannot be decoded"):
        decode_image(data + chunk(b"IEND", b""), name="x.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "not an image: 31 bytes that start with b'<!DOCTYPE"),
        (b"\x00" * 1000, "not an image"),
        (b"\xff\xd8", "no end-of-image marker"),
        (b"\xff\xd8\xff\xd9", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(BadSampleError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(BadSampleError, match=r"gone\.jpg: No such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(BadSampleError, match="Is a directory"):
        read_image(tmp_path)


def test_bad_samples_are_value_errors():
    assert issubclass(BadSampleError, ValueError)
