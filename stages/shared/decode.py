"""One image file, whatever its format and mode, as upright 8-bit RGB; or an `UnusableError` that names the file and says why.

The rules, which consumers/predict.py follows too: the content decides the format, not the name; EXIF orientation is
applied; transparency is laid on white; of 16-bit values the high byte is taken; of an animation the first
frame is taken; nothing truncated is filled up.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

# No other decoder of Pillow's sees a stranger's bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
EXTENSIONS = re.compile(r"\.(jpe?g|jpe|jfif|png|webp|bmp|gif|tiff?|p[bgp]m|avif|hei[cf]|hif)", re.IGNORECASE)
MAX_PIXELS = 2**26  # 67 megapixels: about 0.7 GB at the peak of a decode

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnusableError(ValueError):
    """A file that cannot serve as an image; `kind` is `not_image`, `too_large` or `corrupt`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Decoded:
    pixels: np.ndarray  # (H, W, 3) uint8, upright
    mode: str  # Pillow's mode in the file, as `L` or `I;16`
    rotated: bool  # by EXIF orientation


def probe(path: Path) -> int:
    """The image's longest side in pixels, from its header alone. Raises as `decode` does."""
    with _opened(path) as image:
        return max(image.size)


def decode(path: Path) -> Decoded:
    """Decode a file whole. Raises UnusableError, a ValueError, naming the file and the reason.

    A file that cannot be opened is a plain ValueError.
    """
    with _opened(path) as image:
        # A TIFF is asked first, as Pillow turns it while loading it. No other format: a PNG loads itself to answer, and
        # where that fails a second load gives what there is of the image.
        mode, turned = image.mode, image.format == "TIFF" and _orientation(image) in UPRIGHT
        image.load()
        method = UPRIGHT.get(_orientation(image))
        upright = image if method is None else image.transpose(method)
        return Decoded(_to_rgb(upright), mode, turned or method is not None)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open the file, its header within bounds; any exception in here or in the caller's block becomes UnusableError.

    Only a file that cannot be opened at all stops everything: skipped, it would change the data from machine to machine.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened: {error.strerror}; mend its permissions or delete it") from None
    try:
        with file, Image.open(file, formats=formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"{width}x{height}")
            yield image
    except UnusableError:
        raise
    except Image.DecompressionBombError:  # far larger: Pillow does not let us see the size
        raise _too_large(path, "by its header") from None
    except UnidentifiedImageError:
        kind = "corrupt" if EXTENSIONS.fullmatch(path.suffix) else "not_image"
        raise UnusableError(kind, f"{path}: content is none of {', '.join(formats())}; replace or delete it") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, MemoryError, …
        reason = str(error) or type(error).__name__
        raise UnusableError("corrupt", f"{path}: cannot be decoded: {reason:.200}; replace or delete it") from None


@functools.cache
def formats() -> tuple[str, ...]:
    """FORMATS, once Pillow knows them all: HEIF, which phones write, is a decoder of pillow-heif's, which a bare machine lacks."""
    try:
        import pillow_heif
    except ImportError:
        return tuple(name for name in FORMATS if name != "HEIF")
    pillow_heif.register_heif_opener()
    return FORMATS


def _too_large(path: Path, size: str) -> UnusableError:
    return UnusableError("too_large", f"{path}: holds more than {MAX_PIXELS:,} pixels ({size}); scale it down")


def _orientation(image: Image.Image) -> int:
    """EXIF's 1 to 8. Broken metadata around sound pixels counts as upright, as in browsers."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        return _gray(_float_to_8_bit(np.asarray(image)))
    if image.mode == "I" or image.mode.startswith("I;16"):  # 32-bit integers hold 16-bit values, as in Pillow's PGM
        return _gray(np.asarray(image).clip(0, 65535) >> 8)
    if image.mode == "LAB":  # Pillow converts it only through colour management
        return np.asarray(ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), _srgb(), outputMode="RGB"))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _srgb() -> ImageCms.core.CmsProfile:
    return ImageCms.createProfile("sRGB")


def _float_to_8_bit(values: np.ndarray) -> np.ndarray:
    """Float images have no agreed range: those within 0..1 are taken as fractions, all others as 0..255."""
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    fractions = values.min() >= 0 and values.max() <= 1
    return np.rint(values.clip(0, 255) * (255 if fractions else 1))


def _gray(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)
