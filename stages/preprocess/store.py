"""Decode every image once and store it at once: memory stays bounded however many images there are.

Training images are stored as pixels, in one memory-mapped array, or encoded, in shards, where the array would be too large.
"""

import hashlib
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from stages.preprocess.find import Source, printable
from stages.preprocess.shards import ShardWriter, encode, take_rows
from stages.shared.dataset import place
from stages.shared.decode import UnusableError, decode, probe
from stages.shared.transforms import resize_center_crop, resize_to

SPLITS = ("train", "test")
MAX_WORKERS = 16  # each may hold one whole image (decode.MAX_PIXELS)
MAX_WAITING = 64  # encoded images that wait for their turn to be written
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Image:
    """A source file that could be decoded."""

    source: Source
    sha256: str  # of the decoded pixels and their shape
    size: tuple[int, int]  # pixels, (height, width) as stored for training
    mode: str
    rotated: bool
    downscaled: bool  # for training
    kept: bool = False  # for training, as the file that it came in


@dataclass(frozen=True)
class Skipped:
    source: Source
    kind: str  # not_image, too_large, corrupt
    reason: str


@dataclass(frozen=True)
class Staged:
    """All decoded images in the form of each split that they may end up in; `rows` finds an image in its array."""

    images: tuple[Image, ...]
    skipped: tuple[Skipped, ...]
    stored: dict[str, Path]  # train: uint8 (n, side, side, 3), or a folder of shards; test: uint8 (m, crop, crop, 3)
    rows: dict[str, dict[str, int]]  # split -> source path -> row

    @property
    def encoded(self) -> bool:
        return self.stored["train"].is_dir()


def stage_images(
    sources: Sequence[Source], folder: Path, resize: int, crop: int, max_side: int, max_bytes: float
) -> Staged:
    """Decode `sources` into `folder`; training images encoded, where their pixels would take more than `max_bytes`.

    A source without a split is stored in both forms: which split it goes to is decided by its content, later.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata: what matters is whether the pixels decode
        probed = dict(zip(sources, pool.map(_probe, sources), strict=True))
        longest = {source: found for source, found in probed.items() if isinstance(found, int)}
        rows = {split: _number(source for source in longest if source.split in (split, None)) for split in SPLITS}
        side = min(max(longest.values(), default=1), max_side)
        encoded = len(rows["train"]) * side**2 * 3 > max_bytes
        stored = {"train": folder / ("shards" if encoded else "train.npy"), "test": folder / "test.npy"}
        canvases = None if encoded else create_pixels(stored["train"], len(rows["train"]), side)
        crops = create_pixels(stored["test"], len(rows["test"]), crop)

        def store(source: Source) -> tuple[Image | Skipped, bytes]:
            row, test_row = (rows[split].get(source.path) for split in SPLITS)
            canvas = None if canvases is None or row is None else canvases[row]
            cropped = None if test_row is None else crops[test_row]
            return _store(source, canvas, cropped, resize, max_side, encoded=encoded and row is not None)

        done = tqdm(in_order(pool, store, longest), total=len(longest), desc="decode", unit=" images")
        with ShardWriter(stored["train"]) if encoded else nullcontext() as shards:
            found = [_write(shards, image, data, rows["train"]) for image, data in done]
    for pixels in (canvases, crops):
        if pixels is not None:
            pixels.flush()
    skipped = [image for image in (*probed.values(), *found) if isinstance(image, Skipped)]
    skipped.sort(key=lambda entry: entry.source.path)
    return Staged(tuple(image for image in found if isinstance(image, Image)), tuple(skipped), stored, rows)


def _write(shards: ShardWriter | None, image: Image | Skipped, data: bytes, rows: Mapping[str, int]) -> Image | Skipped:
    if shards and image.source.path in rows:
        shards.append(data)
    return image


def in_order(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, in order, computed by `pool`; unlike with its own `map` few results wait in memory."""
    waiting = deque[Future[Result]]()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > MAX_WAITING:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _number(sources: Iterable[Source]) -> dict[str, int]:
    return {source.path: row for row, source in enumerate(sources)}


def write_split(staged: Staged, split: str, images: Sequence[Image], side: int, folder: Path) -> None:
    """Write pixels.npy or shards, labels.npy and, for training, sizes.npy of `images`, in this order, into a new folder."""
    folder.mkdir()
    rows = [staged.rows[split][image.source.path] for image in images]
    if staged.stored[split].is_dir():
        take_rows(staged.stored[split], rows, folder)
    else:
        _take(staged.stored[split], rows, side, folder / "pixels.npy")
    np.save(folder / "labels.npy", np.array([image.source.label for image in images], dtype=np.int64))
    if split == "train":
        np.save(folder / "sizes.npy", np.array([image.size for image in images], dtype=np.int32))


def _take(staged: Path, rows: Sequence[int], side: int, path: Path) -> None:
    """The staged array itself where it holds just these rows, else a copy of them on canvases of `side`."""
    array = np.load(staged, mmap_mode="r")
    if rows == list(range(len(array))) and side == array.shape[1]:
        staged.replace(path)
        return
    pixels = create_pixels(path, len(rows), side)
    for target, row in enumerate(tqdm(rows, desc=f"write {path.parent.name}", unit=" images")):
        pixels[target] = array[row, :side, :side]
    pixels.flush()


def create_pixels(path: Path, num: int, side: int) -> np.memmap:
    """A new zeroed uint8 (num, side, side, 3) file. Its disk space is reserved now, because a disk that fills up later would kill the process."""
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(num, side, side, 3))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                gigabytes = path.stat().st_size / 1e9
                raise ValueError(
                    f"{path}: no room for {gigabytes:.1f} GB ({error.strerror}); free disk space or lower preprocess.max_side"
                ) from None
    return pixels


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Downscale uint8 (H, W, 3), antialiased, its aspect kept, until its longest side is at most `max_side`."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return image
    return resize_to(image, max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5)))


def content_digest(image: np.ndarray) -> str:
    """sha256 of the pixels and their shape: what a file shows, whatever its name, format or metadata."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _probe(source: Source) -> int | Skipped:
    try:
        return probe(source.file)
    except UnusableError as error:
        return Skipped(source, error.kind, printable(str(error)))


def _store(
    source: Source, canvas: np.ndarray | None, cropped: np.ndarray | None, resize: int, max_side: int, *, encoded: bool
) -> tuple[Image | Skipped, bytes]:
    """Store the image in the rows given; returns it, and its file where training images are `encoded`."""
    try:
        decoded = decode(source.file)
    except UnusableError as error:
        return Skipped(source, error.kind, printable(str(error))), b""
    kept = decoded.pixels if canvas is None and not encoded else shrink(decoded.pixels, max_side)
    if canvas is not None:
        place(kept, canvas, np.zeros(2, np.int32))
    if cropped is not None:
        cropped[:] = resize_center_crop(decoded.pixels, resize, len(cropped))
    data, own = encode(kept, source.file.read_bytes()) if encoded else (b"", False)
    downscaled = kept.shape != decoded.pixels.shape
    digest, (height, width) = content_digest(decoded.pixels), kept.shape[:2]
    return Image(source, digest, (height, width), decoded.mode, decoded.rotated, downscaled, own), data
