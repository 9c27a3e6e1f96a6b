"""Images kept encoded: JPEG or PNG files end to end in a few large shards, decoded when they are asked for.

shard-000.bin …  the files of the images, in row order
index.npy        (N,) of INDEX: where each image's file lies, and its checksum
"""

import os
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from stages.shared.transforms import resize_center_crop

INDEX = np.dtype([("shard", "<i4"), ("offset", "<i8"), ("length", "<i8"), ("crc32", "<u4")])  # bytes
AHEAD = 128  # images decoded before they are asked for, at most


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:03d}.bin"


class EncodedImages:
    """A split's images by row: `images[row]` is uint8 (height, width, 3).

    It stands where an array of canvases (N, side, side, 3) may stand, and has the shape of one. Decoded images are kept up to
    `memory` bytes. Threads may read it at the same time; which of them decodes, and when, changes no pixel.
    """

    def __init__(self, folder: Path, index: np.ndarray, side: int, memory: int = 0) -> None:
        """Raises ValueError naming a shard that is missing or shorter than the index says."""
        check_shards(folder, index)
        self.folder, self.index, self.shape = folder, index, (len(index), side, side, 3)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64))  # of the canvases
        shards = range(int(index["shard"].max(initial=-1)) + 1)
        self._files = [shard_path(folder, number).open("rb", buffering=0) for number in shards]
        self._lock, self._room, self._kept = Lock(), memory, dict[int, np.ndarray]()
        self._pool: ThreadPoolExecutor | None = None
        self._expected, self._decoding = deque[int](), dict[int, Future[np.ndarray]]()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> np.ndarray:
        with self._lock:
            kept, decoding = self._kept.get(row), self._decoding.pop(row, None)
            self._look_ahead()
        if kept is not None:
            return kept
        image = decoding.result() if decoding else self.decode(row)
        with self._lock:
            if image.nbytes <= self._room and row not in self._kept:
                self._room -= image.nbytes
                self._kept[row] = image
        return image

    def expect(self, rows: Iterable[int]) -> None:
        """Let threads decode these rows ahead of who will ask for them in this order; what was expected before is forgotten."""
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(torch.get_num_threads(), "decode")
            self._expected, self._decoding = deque(rows), {}
            self._look_ahead()

    def _look_ahead(self) -> None:
        while self._pool and self._expected and len(self._decoding) < AHEAD:
            row = self._expected.popleft()
            if row not in self._kept and row not in self._decoding:
                self._decoding[row] = self._pool.submit(self.decode, row)

    def decode(self, row: int) -> np.ndarray:
        """Raises ValueError naming the shard and the image where its bytes are not those that were written."""
        try:
            return decode_file(self.read(row))
        except RuntimeError as error:
            raise self._damaged(row, str(error)) from None

    def read(self, row: int) -> bytearray:
        """The image's file."""
        entry = self.index[row]
        data = bytearray(int(entry["length"]))
        # Not a memory map: its pages would count as this process's memory, however many have been read.
        done = os.preadv(self._files[int(entry["shard"])].fileno(), [data], int(entry["offset"]))
        if done != len(data) or zlib.crc32(data) != entry["crc32"]:
            raise self._damaged(row, "its checksum is not the index's")
        return data

    def _damaged(self, row: int, reason: str) -> ValueError:
        path = shard_path(self.folder, int(self.index[row]["shard"]))
        return ValueError(f"{path}: image {row} is damaged ({reason}); run preprocess again")


class EncodedCrops:
    """Images under the test transform, all or those of some `rows`: `crops[row]`, `crops[start:stop]` and `crops[rows]` are arrays.

    It stands where an array uint8 (N, crop, crop, 3) may stand; each image is decoded, resized and cut whenever it is asked for.
    """

    def __init__(self, images: EncodedImages, resize: int, crop: int, rows: Sequence[int] | None = None) -> None:
        self.images, self.rows, self.resize = images, range(len(images)) if rows is None else rows, resize
        self.shape = (len(self.rows), crop, crop, 3)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64))  # of the array
        self._pool = ThreadPoolExecutor(torch.get_num_threads(), "crop")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return self._cut(int(rows))
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows
        crops = np.empty((len(chosen), *self.shape[1:]), dtype=np.uint8)
        for crop, cut in zip(crops, self._pool.map(self._cut, chosen), strict=True):
            crop[:] = cut
        return crops

    def _cut(self, row: int) -> np.ndarray:
        return resize_center_crop(self.images[self.rows[row]], self.resize, self.shape[1])


Crops = np.ndarray | EncodedCrops  # uint8 (N, crop, crop, 3)
Pixels = Crops | EncodedImages  # images by row, on canvases (N, side, side, 3) or without


def check_shards(folder: Path, index: np.ndarray) -> None:
    if index.dtype != INDEX or index.ndim != 1:
        raise ValueError(f"index is {index.dtype} {index.shape}, expected {INDEX} (images,)")
    for number in np.unique(index["shard"]).tolist():
        path, entries = shard_path(folder, number), index[index["shard"] == number]
        needed = int((entries["offset"] + entries["length"]).max())
        if not path.is_file():
            raise ValueError(f"{path.name}: no such file")
        if (size := path.stat().st_size) < needed:
            raise ValueError(f"{path.name} has {size} bytes of {needed}: it was cut short")


def decode_file(data: bytearray) -> np.ndarray:
    """uint8 (height, width, 3) of a JPEG or PNG file's bytes. Raises RuntimeError where they are neither."""
    # Importing it takes a second, which the other store need not spend.
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
