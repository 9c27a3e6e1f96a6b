"""Thousands of broken and hostile images against the decoder: no crash, no hang, bounded memory, each one named.

The files are decoded in a child process, so that a crash or a hang of the C decoders is seen as such, and under an
address-space limit, so that memory is bounded by the system and not by trust.
"""

import io
import json
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from stages.shared.decode import MAX_PIXELS, UnusableError, decode, formats, probe

ADDRESS_SPACE = 4 * 2**30
PEAK_MEGABYTES = 1500
EXTENSIONS = ("jpg", "png", "gif", "tiff", "webp", "bmp", "ppm", "avif", "heic", "txt", "JPEG", "ico", "")


def encode(image: Image.Image, format_name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def sound_images() -> list[bytes]:
    """One small image of each format, mode and kind of metadata that Pillow can write."""
    assert {"AVIF", "HEIF"} <= set(formats())  # which makes Pillow know HEIF
    noise = np.random.default_rng(0).integers(0, 256, (24, 18, 4), dtype=np.uint8)
    rgba, rgb = Image.fromarray(noise), Image.fromarray(noise[..., :3])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words " * 50
    several = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    lab = ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    float_image, deep = (
        Image.fromarray(noise[..., 0] / np.float32(255)),
        Image.fromarray(noise[..., 0].astype(np.uint16) * 257),
    )
    modes = [rgb.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    return [
        *(encode(image, "PNG") for image in [*modes, rgba, deep]),
        *(
            encode(image, "TIFF")
            for image in [*modes, rgba, deep, float_image, lab, rgb.convert("CMYK"), rgb.convert("YCbCr")]
        ),
        *(encode(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")),
        *(encode(rgb.convert(mode), "JPEG", exif=exif) for mode in ("RGB", "L", "CMYK")),
        encode(rgb, "JPEG", progressive=True, comment=b"c" * 300),
        encode(rgb, "PNG", exif=exif),
        encode(rgb.quantize(16), "PNG", transparency=3),
        *(encode(rgb, name, **several) for name in ("GIF", "PNG", "WEBP", "TIFF", "MPO")),
        encode(rgba, "WEBP", lossless=True, exif=exif),
        *(encode(image, "BMP") for image in modes if image.mode != "LA"),
        encode(rgb, "PPM"),
        encode(rgb.convert("L"), "PPM"),
        *(encode(image, name, exif=exif.tobytes()) for name in ("AVIF", "HEIF") for image in (rgb, rgba)),
        *(encode(rgb, name, **several) for name in ("AVIF", "HEIF")),
    ]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + png_chunk(b"IDAT", zlib.compress(data))
        + png_chunk(b"IEND", b"")
    )


def directory_bomb(num_tags: int, size: int) -> bytes:
    """A TIFF directory whose tags all point at the same bytes: read naively, it unfolds to num_tags x size bytes."""
    tags = b"".join(struct.pack("<HHII", tag, 7, size, 0) for tag in range(1, num_tags + 1))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", num_tags) + tags + b"\0\0\0\0" + b"x" * size


def bombs() -> list[bytes]:
    """Small files that ask for much: huge declared sizes, metadata that unfolds, images of one row or one pixel."""
    row = b"\0" + b"\1\2\3"
    exif = b"Exif\0\0" + directory_bomb(4000, 12_000)
    jpeg = encode(Image.new("RGB", (8, 8)), "JPEG")
    segments = [b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in (exif, b"Exif\0\0" + b"y" * 60_000)]
    huge = (60_000, 60_000)
    return [
        *(png(*size, data=row) for size in (huge, (2**31 - 1, 2**31 - 1), (8192, 8192), (8192, 8193), (0, 5))),
        png(1, 1, data=row),
        png(20_000, 1, data=b"\0" * 60_001),
        png(1, 20_000, data=row * 20_000),
        png(1, 1, png_chunk(b"iCCP", b"p\0\0" + zlib.compress(b"\0" * 2**27)), data=row),
        png(1, 1, png_chunk(b"zTXt", b"t\0\0" + zlib.compress(b"\0" * 2**27)), data=row),
        png(1, 1, *[png_chunk(b"tEXt", b"k%d\0" % i + b"v" * 1000) for i in range(2000)], data=row),
        png(1, 1, png_chunk(b"eXIf", directory_bomb(65_000, 200_000)), data=row),
        png(4, 4, data=b"\0" * 2**27),
        directory_bomb(65_000, 200_000),
        jpeg[:2] + segments[0] + jpeg[2:],
        jpeg[:2] + b"".join([segments[0], *[segments[1]] * 30]) + jpeg[2:],
        b"BM" + struct.pack("<IHHIIiiHHIIIIII", 200, 0, 0, 54, 40, *huge, 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 200,
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\x80\0\0"
        + b"\0" * 6
        + b","
        + struct.pack("<HHHH", 0, 0, 65535, 65535)
        + b"\0\2\0;",
        b"P6 60000 60000 255 " + b"\0" * 100,
        b"P6 8000 8000 255 " + b"\0" * 100,
        b"P5 99999999999999999999 1 255 ",
        encode(Image.new("L", (8192, 8192)), "PNG"),
    ]


def mutated(sound: list[bytes], rng: random.Random) -> bytes:
    """A sound image with one to three injuries."""
    data = bytearray(rng.choice(sound))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) or 1)
        match rng.randrange(9):
            case 0:
                del data[at:]  # truncated
            case 1 | 2:
                for _ in range(min(rng.choice((1, 3, 20)), len(data))):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 3:  # the header alone
                for _ in range(min(3, len(data))):
                    data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
            case 4:
                data[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0")
                )
            case 5:
                data[at : at + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
            case 6:
                data[at:at] = data[: rng.randrange(1, 256)]
            case 7:
                del data[at : at + rng.randrange(1, 64)]
            case 8:
                data += rng.choice(sound)
    return bytes(data)


def hostile_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` named files: the sound ones under wrong names, the bombs, and mutations for the rest."""
    rng, sound = random.Random(seed), sound_images()
    contents = [*sound, *bombs()]
    for number in range(count):
        content = contents[number] if number < len(contents) else mutated(sound, rng)
        yield f"{number}.{rng.choice(EXTENSIONS)}", content


def attack(folder: Path, count: int, seed: int) -> None:
    """The child process: decode each file; print what happened as JSON."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    warnings.simplefilter("ignore")
    outcomes: Counter[str] = Counter()
    for name, content in hostile_files(count, seed):
        path = folder / name
        path.write_bytes(content)
        for function in (probe, decode):
            outcomes[f"{function.__name__} {outcome(function, path)}"] += 1
        path.unlink()
    # Not ru_maxrss: a child starts with its parent's, and the parent may be a large test run.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
    print(json.dumps(outcomes | {"peak_megabytes": peak}))


def outcome(function, path: Path) -> str:
    try:
        result = function(path)
    except UnusableError as error:
        named = str(error).startswith(f"{path}: ") and "MemoryError" not in str(error)
        return error.kind if named else f"badly reported: {error}"
    if function is probe:
        return "accepted" if 1 <= result <= MAX_PIXELS else f"of side {result}"
    if not is_whole(path):
        return "filled up"
    height, width, channels = result.pixels.shape
    fits = (result.pixels.dtype, channels) == (np.uint8, 3) and 1 <= height * width <= MAX_PIXELS
    return "accepted" if fits else f"of shape {result.pixels.shape}"


def is_whole(path: Path) -> bool:
    """Whether Pillow decodes the file to its end, asked for nothing before that."""
    try:
        with Image.open(path, formats=formats()) as image:
            image.load()
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    ("count", "seed"),
    [(300, 0), *(pytest.param(1500, seed, marks=pytest.mark.slow) for seed in (1, 2))],
)
def test_hostile_images_are_decoded_or_named_within_bounds(tmp_path, count, seed):
    command = [sys.executable, "-B", "-m", "tests.test_decode_fuzz", str(tmp_path), str(count), str(seed)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert child.returncode == 0, f"exit {child.returncode}: {child.stderr[-2000:]}"
    outcomes = json.loads(child.stdout)
    print(outcomes)
    peak = outcomes.pop("peak_megabytes")
    decoded = {key.removeprefix("decode "): value for key, value in outcomes.items() if key.startswith("decode ")}
    assert sum(decoded.values()) == count
    assert set(decoded) == {"accepted", "corrupt", "not_image", "too_large"}
    assert decoded["accepted"] > count // 10  # the mutations are not all hopeless: they reach the decoders
    assert decoded["corrupt"] > count // 10
    assert decoded["too_large"] >= 5
    assert peak < PEAK_MEGABYTES


if __name__ == "__main__":
    attack(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
