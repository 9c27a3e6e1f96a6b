"""Every mode becomes upright 8-bit RGB; what cannot, is refused with the file and the reason named."""

import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps

from stages.shared import decode as module
from stages.shared.decode import FORMATS, MAX_PIXELS, UnusableError, decode, formats, probe

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def tripled(gray):
    return np.repeat(np.asarray(gray, dtype=np.uint8)[..., None], 3, axis=2)


def png_of_declared_size(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp", "ppm"])
def test_rgb_pixels_are_untouched(tmp_path, extension):
    options = {"lossless": True} if extension == "webp" else {}
    decoded = decode(saved(tmp_path / f"a.{extension}", Image.fromarray(RGB), **options))
    assert (decoded.mode, decoded.rotated, decoded.pixels.dtype) == ("RGB", False, np.uint8)
    np.testing.assert_array_equal(decoded.pixels, RGB)


def test_jpeg_is_decoded_as_pillow_does(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(RGB))
    np.testing.assert_array_equal(decode(path).pixels, np.asarray(Image.open(path)))


@pytest.mark.parametrize("extension", ["avif", "heic"])
def test_what_phones_write_is_upright_and_on_white(tmp_path, extension):
    module.formats()  # from now on Pillow writes HEIC too
    image = Image.linear_gradient("L").resize((40, 24)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(saved(tmp_path / f"a.{extension}", image, quality=95, exif=exif.tobytes())).pixels
    assert turned.shape == (40, 24, 3)
    assert np.abs(turned.astype(int) - np.rot90(np.asarray(image), -1)).max() <= 4
    image.putalpha(0)
    clear = decode(saved(tmp_path / f"b.{extension}", image, quality=95))
    assert (clear.mode, clear.pixels.min()) == ("RGBA", 255)


def test_gray_is_repeated(tmp_path):
    decoded = decode(saved(tmp_path / "a.png", Image.fromarray(GRAY)))
    assert decoded.mode == "L"
    np.testing.assert_array_equal(decoded.pixels, tripled(GRAY))


def test_one_bit_is_black_and_white(tmp_path):
    decoded = decode(saved(tmp_path / "a.png", Image.fromarray(GRAY > 127)))
    assert decoded.mode == "1"
    np.testing.assert_array_equal(decoded.pixels, tripled((GRAY > 127) * 255))


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_16_bit_gray_keeps_its_high_byte(tmp_path, extension):
    values = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    decoded = decode(saved(tmp_path / f"a.{extension}", Image.fromarray(values)))
    assert decoded.mode == "I;16"
    np.testing.assert_array_equal(decoded.pixels, tripled(values >> 8))


def test_big_endian_16_bit_gray_keeps_its_high_byte(tmp_path):
    decoded = decode(saved(tmp_path / "a.tiff", Image.new("I;16B", (7, 5), 0x1234)))
    assert decoded.mode == "I;16B"
    np.testing.assert_array_equal(decoded.pixels, np.full((5, 7, 3), 0x12))


def test_32_bit_integers_count_as_16_bit_values(tmp_path):
    values = np.array([[-5, 0, 255, 256, 65535, 70000]], dtype=np.int32)
    decoded = decode(saved(tmp_path / "a.tiff", Image.fromarray(values)))
    assert decoded.mode == "I"
    np.testing.assert_array_equal(decoded.pixels, tripled([[0, 0, 0, 1, 255, 255]]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([-3.0, 0.6, 300.0], [0, 1, 255]), ([0.0, 1.5, 255.0], [0, 2, 255])],
)
def test_floats_are_fractions_or_levels(tmp_path, values, expected):
    decoded = decode(saved(tmp_path / "a.tiff", Image.fromarray(np.array([values], np.float32))))
    assert decoded.mode == "F"
    np.testing.assert_array_equal(decoded.pixels, tripled([expected]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused(tmp_path, value):
    path = saved(tmp_path / "a.tiff", Image.fromarray(np.array([[0, value]], np.float32)))
    with pytest.raises(UnusableError, match=r"a\.tiff: cannot be decoded: it holds values that are not finite"):
        decode(path)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = Image.fromarray(RGB).convert(mode)
    alpha = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    alpha[0, :3] = 0, 128, 255
    image.putalpha(Image.fromarray(alpha))
    decoded = decode(saved(tmp_path / "a.png", image))
    opaque = np.asarray(Image.fromarray(RGB).convert("L" if mode == "LA" else "RGB").convert("RGB"), dtype=float)
    weight = alpha[..., None] / 255
    assert decoded.mode == mode
    assert np.abs(decoded.pixels - (opaque * weight + 255 * (1 - weight))).max() <= 1
    np.testing.assert_array_equal(decoded.pixels[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(decoded.pixels[0, 2], opaque[0, 2])


def test_transparent_colours_of_a_palette_are_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    decoded = decode(saved(tmp_path / "a.png", image, transparency=1))
    assert decoded.mode == "P"
    np.testing.assert_array_equal(decoded.pixels, [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]])


@pytest.mark.parametrize(("mode", "color"), [("L", 9), ("RGB", (9, 8, 7))])
def test_a_colour_named_transparent_is_white(tmp_path, mode, color):
    path = saved(tmp_path / "a.png", Image.new(mode, (2, 1), color), transparency=color)
    np.testing.assert_array_equal(decode(path).pixels, np.full((1, 2, 3), 255))


def test_opaque_palette_is_looked_up(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    decoded = decode(saved(tmp_path / "a.gif", image))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(image.convert("RGB")))


def test_palette_with_alpha_in_a_tiff_is_laid_on_white(tmp_path):
    image = Image.new("PA", (1, 1))
    image.putpalette([10, 20, 30])
    decoded = decode(saved(tmp_path / "a.tiff", image))  # alpha 0
    assert decoded.mode == "PA"
    np.testing.assert_array_equal(decoded.pixels, [[[255, 255, 255]]])


@pytest.mark.parametrize(
    ("extension", "mode", "ink", "expected"),
    [
        ("jpg", "CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("jpg", "CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("tiff", "CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("tiff", "YCbCr", (76, 85, 255), (254, 0, 0)),
        ("tiff", "LAB", (255, 128, 128), (255, 255, 255)),
        ("tiff", "LAB", (0, 128, 128), (0, 0, 0)),
        ("tiff", "LAB", (138, 128, 128), (130, 130, 130)),
    ],
)
def test_other_colour_spaces_become_rgb(tmp_path, extension, mode, ink, expected):
    decoded = decode(saved(tmp_path / f"a.{extension}", Image.new(mode, (8, 8), ink)))
    assert decoded.mode == mode
    assert np.abs(decoded.pixels.astype(int) - expected).max() <= 2


def test_lab_agrees_with_colour_management(tmp_path):
    lab = ImageCms.profileToProfile(
        Image.fromarray(RGB), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    decoded = decode(saved(tmp_path / "a.tiff", lab))
    assert np.abs(decoded.pixels.astype(int) - RGB).mean() < 2


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, extension, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{extension}", Image.fromarray(RGB), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    decoded = decode(path)
    assert decoded.pixels.shape == ((7, 5, 3) if orientation >= 5 else (5, 7, 3))
    assert decoded.rotated == (orientation > 1)
    np.testing.assert_array_equal(decoded.pixels, expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_mean_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif))
    assert not decoded.rotated
    np.testing.assert_array_equal(decoded.pixels, RGB)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0garbage!", b"Exif\0\0II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"]
)
def test_broken_metadata_around_sound_pixels_means_upright(tmp_path, exif):
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(decode(path).pixels, RGB)


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_counts(tmp_path, extension):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path / f"a.{extension}", frames[0], save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(path).pixels, np.full((4, 4, 3), (255, 0, 0)))


def test_the_content_decides_and_not_the_extension(tmp_path):
    path = saved(tmp_path / "a.txt", Image.fromarray(RGB), format="PNG")
    np.testing.assert_array_equal(decode(path).pixels, RGB)


def test_formats_off_the_list_are_refused(tmp_path):
    path = saved(tmp_path / "a.ico", Image.fromarray(RGB), format="ICO")
    with pytest.raises(
        UnusableError, match=r"a\.ico: content is none of JPEG, PNG, .*; replace or delete it"
    ) as caught:
        decode(path)
    assert caught.value.kind == "not_image"


@pytest.mark.parametrize(
    ("name", "kind"), [("notes.txt", "not_image"), ("photo.JPEG", "corrupt"), ("Thumbs.db", "not_image")]
)
@pytest.mark.parametrize("content", [b"", b"\0", b"hello", b"<html>not found</html>"])
def test_no_image_is_corrupt_only_where_the_name_promised_one(tmp_path, name, kind, content):
    (tmp_path / name).write_bytes(content)
    for function in (probe, decode):
        with pytest.raises(UnusableError, match=name) as caught:
            function(tmp_path / name)
        assert caught.value.kind == kind


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_files_are_refused_and_not_filled_up(tmp_path, extension, part):
    image = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = saved(tmp_path / f"a.{extension}", image).read_bytes()
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UnusableError, match=rf"cut\.{extension}: .*; replace or delete it") as caught:
        decode(path)
    assert caught.value.kind == "corrupt"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_png_with_broken_data_is_refused_and_not_filled_up(tmp_path):
    """Pillow gives what there is of it to whoever asks a second time, as for the orientation and then for the pixels."""
    path = saved(tmp_path / "a.png", Image.fromarray(RNG.integers(0, 256, (50, 50, 3), dtype=np.uint8)))
    content = path.read_bytes()
    start = content.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", content[start - 8 : start - 4])
    data = bytearray(content[start : start + length])
    data[length // 2 : length // 2 + 8] = b"\xff" * 8
    checksum = struct.pack(">I", zlib.crc32(b"IDAT" + data))
    for broken in (
        content[:start] + data + checksum + content[start + length + 4 :],  # well packed, wrongly compressed
        content[:start] + data + content[start + length :],  # a wrong checksum too
        content.replace(b"IDAT", b"IDXT"),  # no data at all
    ):
        path.write_bytes(broken)
        with pytest.raises(UnusableError, match=r"a\.png: (cannot be decoded|content is none)") as caught:
            decode(path)
        assert caught.value.kind == "corrupt"


@pytest.mark.parametrize("size", [(8193, 8192), (60_000, 60_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_huge_images_are_refused_by_their_header(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_declared_size(*size))
    for function in (probe, decode):
        with pytest.raises(
            UnusableError, match=rf"bomb\.png: holds more than {MAX_PIXELS:,} pixels \(.*\); scale it down"
        ) as caught:
            function(path)
        assert caught.value.kind == "too_large"


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_extreme_shapes_are_accepted(tmp_path, size):
    path = saved(tmp_path / "a.png", Image.new("RGB", size, "red"))
    assert probe(path) == max(size)
    np.testing.assert_array_equal(decode(path).pixels, np.full((size[1], size[0], 3), (255, 0, 0)))


@pytest.mark.parametrize(
    "error",
    [
        SyntaxError("x"),
        struct.error("x"),
        zlib.error("x"),
        MemoryError(),
        RecursionError(),
        OverflowError("x"),
        EOFError(),
    ],
)
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))

    def fail(image):
        raise error

    monkeypatch.setattr(module, "_to_rgb", fail)
    with pytest.raises(UnusableError, match=rf"a\.png: cannot be decoded: (x|{type(error).__name__})"):
        decode(path)


def test_a_file_that_cannot_be_opened_is_not_skipped(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png: cannot be opened: No such file") as caught:
        decode(tmp_path / "gone.png")
    assert not isinstance(caught.value, UnusableError)


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
)
def test_every_size_and_mode_gives_its_own_size_in_rgb(tmp_path_factory, height, width, mode):
    path = saved(tmp_path_factory.mktemp("image") / "a.png", Image.new(mode, (width, height)))
    decoded = decode(path)
    assert (decoded.pixels.shape, decoded.pixels.dtype, decoded.mode) == ((height, width, 3), np.uint8, mode)
    assert probe(path) == max(height, width)


def test_without_pillow_heif_everything_else_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.cache_clear()
    try:
        Image.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
        assert decode(tmp_path / "red.png").pixels.shape == (3, 4, 3)
        assert formats() == tuple(name for name in FORMATS if name != "HEIF")
    finally:
        formats.cache_clear()
