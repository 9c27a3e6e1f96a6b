"""Write images encoded: a file each, end to end in a few large shards."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from stages.shared.encoded import INDEX, EncodedImages, decode_file, shard_path
from stages.shared.transforms import resize_center_crop

SHARD_BYTES = 2**30  # a shard ends with the image that fills it
QUALITY = 90  # of images that are not kept as they came; chroma at half the resolution


def decodes_to(file: bytes, pixels: np.ndarray) -> bool:
    """Whether it is a JPEG file of just these pixels, uint8 (H, W, 3).

    It is not where the image was turned or scaled down, or has colours that take more than a decoder to read.
    """
    try:
        return file.startswith(b"\xff\xd8") and np.array_equal(decode_file(bytearray(file)), pixels)
    except RuntimeError:  # it is more than torchvision reads
        return False


def to_jpeg(pixels: np.ndarray) -> bytes:
    return _saved(pixels, "JPEG", quality=QUALITY)


def to_png(pixels: np.ndarray, resize: int) -> bytes:
    """A file that the test transform makes the same of as of `pixels`, uint8 (H, W, 3): these, or, where they are more, their squash."""
    squash = pixels if pixels.size <= resize**2 * 3 else resize_center_crop(pixels, resize, resize)
    return _saved(squash, "PNG")


def _saved(pixels: np.ndarray, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


class ShardWriter:
    """Appends files to shards in a new folder; leaving the `with` block writes the index."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.entries = folder, list[tuple[int, int, int, int]]()
        self.number, self.offset = 0, 0
        self.file = shard_path(folder, 0).open("wb")

    def append(self, data: bytes) -> None:
        """Write the next row; one without data is an image that could not be decoded, and must not be asked for."""
        if self.offset >= SHARD_BYTES:
            self.file.close()
            self.number, self.offset = self.number + 1, 0
            self.file = shard_path(self.folder, self.number).open("wb")
        self.file.write(data)
        self.entries.append((self.number, self.offset, len(data), zlib.crc32(data)))
        self.offset += len(data)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if error is None:
            np.save(self.folder / "index.npy", np.array(self.entries, dtype=INDEX))


def take_rows(staged: Path, rows: Sequence[int], folder: Path) -> None:
    """Bring these rows of the shards in `staged` to `folder`: the shards themselves where they hold just these."""
    index = np.load(staged / "index.npy")
    if list(rows) == list(range(len(index))):
        for path in staged.iterdir():
            path.replace(folder / path.name)
        return
    images = EncodedImages(staged, index, side=0)
    with ShardWriter(folder) as writer:
        for row in rows:
            writer.append(bytes(images.read(row)))
