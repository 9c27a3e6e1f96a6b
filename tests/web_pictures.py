"""Pictures for the browser's test: PHOTOS it must read as Pillow does, HOSTILE ones with what the page must say of them."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pillow_heif
from PIL import Image

EXIF_ORIENTATION = 0x0112


def picture(width: int = 90, height: int = 60, alpha: bool = False) -> Image.Image:
    """Smooth colours and a little noise, unlike in each corner, so that every turn and flip shows."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width] / max(width, height)
    planes = [255 * x, 200 * y, 255 * x * y, 255 * (1 - x)]
    pixels = np.stack(planes, axis=-1) + rng.normal(0, 12, (height, width, 4))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")
    return image if alpha else image.convert("RGB")


def encode(image: Image.Image, kind: str, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    out = BytesIO()
    image.save(out, kind, **({"exif": exif} if orientation > 1 else {}), **options)
    return out.getvalue()


def huge_png() -> bytes:
    """70 bytes that claim 3.6 gigapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def heic() -> bytes:
    out = BytesIO()
    pillow_heif.from_pillow(picture()).save(out)
    return out.getvalue()


PNG, JPEG = encode(picture(), "PNG"), encode(picture(), "JPEG")
ANIMATION = [picture(), picture().rotate(180)]
ON_BLACK = Image.alpha_composite(Image.new("RGBA", (90, 60), "black"), picture(alpha=True))
PHOTOS = {
    "opaque.png": PNG,
    "on_black.png": encode(ON_BLACK, "PNG"),
    "transparent.png": encode(picture(alpha=True), "PNG"),
    "transparent.webp": encode(picture(alpha=True), "WEBP", lossless=True),
    "16bit.png": encode(Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 251), "PNG"),
    "palette.png": encode(picture().quantize(16), "PNG"),
    "gray.jpg": encode(picture().convert("L"), "JPEG"),
    "cmyk.jpg": encode(picture().convert("CMYK"), "JPEG"),
    "progressive.jpg": encode(picture(), "JPEG", progressive=True),
    "animated.gif": encode(ANIMATION[0], "GIF", save_all=True, append_images=ANIMATION[1:]),
    "animated.webp": encode(ANIMATION[0], "WEBP", save_all=True, append_images=ANIMATION[1:], lossless=True),
    "photo.bmp": encode(picture(), "BMP"),
    "photo.avif": encode(picture(), "AVIF", subsampling="4:4:4", quality=100),
    "turned.avif": encode(picture(), "AVIF", orientation=6, subsampling="4:4:4", quality=100),
    "1x1.png": encode(picture(1, 1), "PNG"),
    "20000x1.png": encode(picture(20_000, 1), "PNG"),
    "turned.png": encode(picture(), "PNG", orientation=6),
    **{f"turned{way}.jpg": encode(picture(), "JPEG", orientation=way) for way in range(2, 9)},
    **{f"turned{way}.webp": encode(picture(), "WEBP", orientation=way, lossless=True) for way in range(2, 9)},
}

HOSTILE = {
    "empty.png": (b"", "empty"),
    "text.jpg": (b"<html>not an image</html>", "not an image"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "head.png": (PNG[:20], "ends too early"),
    "half.png": (PNG[: len(PNG) // 2], "ends too early"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "ends too early"),
    "half.webp": (PHOTOS["transparent.webp"][:500], "ends too early"),
    "half.gif": (b"GIF89a" + bytes(20), "damaged"),
    "zeroed.png": (PNG[:60] + bytes(len(PNG) - 72) + PNG[-12:], "damaged"),
    "garbage.png": (PNG.replace(PNG[60:120], bytes(60)), "damaged"),
    "half.avif": (PHOTOS["photo.avif"][:-200], "ends too early"),
    "photo.heic": (heic(), "cannot read HEIC photos. Save it as JPEG"),
    "huge.png": (huge_png(), "60,000 × 60,000 pixels; the limit is 67 megapixels"),
}
