"""Decode every image once, straight into memory-mapped arrays: memory stays bounded however many images there are."""

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.preprocess.decode import UnusableError, decode, probe
from stages.preprocess.find import Source, printable
from stages.shared.dataset import place
from stages.shared.transforms import resize_center_crop, resize_to

SPLITS = ("train", "test")
MAX_WORKERS = 16  # each may hold one whole image (decode.MAX_PIXELS)


@dataclass(frozen=True)
class Image:
    """A source file that could be decoded."""

    source: Source
    sha256: str  # of the decoded pixels and their shape
    size: tuple[int, int]  # pixels, (height, width) as stored for training
    mode: str
    rotated: bool
    downscaled: bool  # for training


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
    arrays: dict[str, Path]  # train: (n, side, side, 3), test: (m, crop, crop, 3), both uint8
    rows: dict[str, dict[str, int]]  # split -> source path -> row


def stage_images(sources: Sequence[Source], folder: Path, resize: int, crop: int, max_side: int) -> Staged:
    """Decode `sources` into `folder`. A source without a split is stored in both forms: which split it goes to is decided by its content, later."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata: what matters is whether the pixels decode
        probed = dict(zip(sources, pool.map(_probe, sources), strict=True))
        longest = {source: found for source, found in probed.items() if isinstance(found, int)}
        rows = {split: _number(source for source in longest if source.split in (split, None)) for split in SPLITS}
        arrays = {split: folder / f"{split}.npy" for split in SPLITS}
        canvases = create_pixels(arrays["train"], len(rows["train"]), min(max(longest.values(), default=1), max_side))
        crops = create_pixels(arrays["test"], len(rows["test"]), crop)

        def store(source: Source) -> Image | Skipped:
            canvas, cropped = (
                pixels[rows[split][source.path]] if source.path in rows[split] else None
                for split, pixels in (("train", canvases), ("test", crops))
            )
            return _store(source, canvas, cropped, resize, max_side)

        stored = list(tqdm(pool.map(store, longest), total=len(longest), desc="decode", unit=" images"))
    canvases.flush()
    crops.flush()
    skipped = [found for found in (*probed.values(), *stored) if isinstance(found, Skipped)]
    skipped.sort(key=lambda entry: entry.source.path)
    return Staged(tuple(found for found in stored if isinstance(found, Image)), tuple(skipped), arrays, rows)


def _number(sources: Iterable[Source]) -> dict[str, int]:
    return {source.path: row for row, source in enumerate(sources)}


def write_split(staged: Staged, split: str, images: Sequence[Image], side: int, folder: Path) -> None:
    """Write pixels.npy, labels.npy and, for training, sizes.npy of `images`, in this order, into a new folder."""
    folder.mkdir()
    _take(staged, split, images, side, folder / "pixels.npy")
    np.save(folder / "labels.npy", np.array([image.source.label for image in images], dtype=np.int64))
    if split == "train":
        np.save(folder / "sizes.npy", np.array([image.size for image in images], dtype=np.int32))


def _take(staged: Staged, split: str, images: Sequence[Image], side: int, path: Path) -> None:
    """The staged array itself where it holds just these rows, else a copy of them on canvases of `side`."""
    rows = [staged.rows[split][image.source.path] for image in images]
    array = np.load(staged.arrays[split], mmap_mode="r")
    if rows == list(range(len(array))) and side == array.shape[1]:
        staged.arrays[split].replace(path)
        return
    pixels = create_pixels(path, len(rows), side)
    for target, row in enumerate(tqdm(rows, desc=f"write {split}", unit=" images")):
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
    source: Source, canvas: np.ndarray | None, cropped: np.ndarray | None, resize: int, max_side: int
) -> Image | Skipped:
    try:
        decoded = decode(source.file)
    except UnusableError as error:
        return Skipped(source, error.kind, printable(str(error)))
    kept = decoded.pixels if canvas is None else shrink(decoded.pixels, max_side)
    size = np.array(kept.shape[:2])
    if canvas is not None:
        place(kept, canvas, size)
    if cropped is not None:
        cropped[:] = resize_center_crop(decoded.pixels, resize, len(cropped))
    downscaled = kept.shape != decoded.pixels.shape
    return Image(
        source, content_digest(decoded.pixels), (int(size[0]), int(size[1])), decoded.mode, decoded.rotated, downscaled
    )
