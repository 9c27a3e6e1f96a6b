"""Decode every image once and store it at once: memory stays bounded however many images there are.

Images are stored as pixels, in one memory-mapped array a split, or encoded, in shards, where that of the training images would be too large.
"""

import hashlib
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from stages.preprocess.find import Source, printable
from stages.preprocess.shards import ShardWriter, decodes_to, take_rows, to_jpeg, to_png
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
    stored: dict[str, Path]  # train: uint8 (n, side, side, 3); test: uint8 (m, crop, crop, 3); or folders of shards
    rows: dict[str, dict[str, int]]  # split -> source path -> row
    encoded: bool


def stage_images(
    sources: Sequence[Source], folder: Path, resize: int, crop: int, max_side: int, max_bytes: float
) -> Staged:
    """Decode `sources` into `folder`; encoded, where the training images' pixels would take more than `max_bytes`.

    A source without a split is stored in both forms: which split it goes to is decided by its content, later.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata: what matters is whether the pixels decode
        probed = dict(zip(sources, pool.map(_probe, sources), strict=True))
        longest = {source: found for source, found in probed.items() if isinstance(found, int)}
        rows = {split: _number(source for source in longest if source.split in (split, None)) for split in SPLITS}
        side = min(max(longest.values(), default=1), max_side)
        encoded = len(rows["train"]) * side**2 * 3 > max_bytes
        stored = {split: folder / (f"{split}-shards" if encoded else f"{split}.npy") for split in SPLITS}
        sides = {} if encoded else {"train": side, "test": crop}
        pixels = {split: create_pixels(stored[split], len(rows[split]), sides[split]) for split in sides}

        def store(source: Source) -> tuple[Image | Skipped, dict[str, bytes]]:
            places = {split: pixels[split][rows[split][source.path]] for split in pixels if source.path in rows[split]}
            return _store(source, places, resize, max_side, encoded=encoded)

        done = tqdm(in_order(pool, store, longest), total=len(longest), desc="decode", unit=" images", disable=None)
        with ExitStack() as stack:
            shards = {split: stack.enter_context(ShardWriter(stored[split])) for split in SPLITS if encoded}
            found = [_write(shards, image, files, rows) for image, files in done]
    for array in pixels.values():
        array.flush()
    skipped = [image for image in (*probed.values(), *found) if isinstance(image, Skipped)]
    skipped.sort(key=lambda entry: entry.source.path)
    return Staged(tuple(image for image in found if isinstance(image, Image)), tuple(skipped), stored, rows, encoded)


def _write(
    shards: Mapping[str, ShardWriter],
    image: Image | Skipped,
    files: Mapping[str, bytes],
    rows: Mapping[str, Mapping[str, int]],
) -> Image | Skipped:
    for split, writer in shards.items():
        if image.source.path in rows[split]:
            writer.append(files.get(split, b""))
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
    """Write `images`, in this order, into a new folder: what `dataset` describes, but for the lists of files."""
    folder.mkdir()
    rows = [staged.rows[split][image.source.path] for image in images]
    np.save(folder / "labels.npy", np.array([image.source.label for image in images], dtype=np.int64))
    if split == "train":
        np.save(folder / "sizes.npy", np.array([image.size for image in images], dtype=np.int32))
    else:  # for stages that may not read the labels
        folder = folder / "images"
        folder.mkdir()
    if staged.encoded:
        take_rows(staged.stored[split], rows, folder)
    else:
        _take(staged.stored[split], rows, side, folder / "pixels.npy")


def _take(staged: Path, rows: Sequence[int], side: int, path: Path) -> None:
    """The staged array itself where it holds just these rows, else a copy of them on canvases of `side`."""
    array = np.load(staged, mmap_mode="r")
    if rows == list(range(len(array))) and side == array.shape[1]:
        staged.replace(path)
        return
    pixels = create_pixels(path, len(rows), side)
    for target, row in enumerate(tqdm(rows, desc=f"write {path.parent.name}", unit=" images", disable=None)):
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
    source: Source, places: Mapping[str, np.ndarray], resize: int, max_side: int, *, encoded: bool
) -> tuple[Image | Skipped, dict[str, bytes]]:
    """Write the image into its places, the rows of each split's array; returns it, and its file for each split where images are `encoded`."""
    try:
        decoded = decode(source.file)
    except UnusableError as error:
        return Skipped(source, error.kind, printable(str(error))), {}
    smaller = decoded.pixels if source.split == "test" else shrink(decoded.pixels, max_side)
    if "train" in places:
        place(smaller, places["train"], np.zeros(2, np.int32))
    if "test" in places:
        places["test"][:] = resize_center_crop(decoded.pixels, resize, len(places["test"]))
    downscaled = smaller.shape != decoded.pixels.shape
    files, own = dict[str, bytes](), False
    if encoded:
        file = source.file.read_bytes()
        own = max(decoded.pixels.shape[:2]) <= max_side and decodes_to(file, decoded.pixels)
        ways = {"train": lambda: to_jpeg(smaller), "test": lambda: to_png(decoded.pixels, resize)}
        files = {split: file if own else encode() for split, encode in ways.items() if source.split in (split, None)}
    digest, (height, width) = content_digest(decoded.pixels), smaller.shape[:2]
    return Image(source, digest, (height, width), decoded.mode, decoded.rotated, downscaled, own), files
