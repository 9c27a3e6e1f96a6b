"""The source dataset as a tree of images: unpacked, copied or drawn."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from masking import masked
from stages.download import checksum as digests
from stages.download.addresses import is_url
from stages.download.fetch import fetch
from stages.download.unpack import is_junk, unpack
from stages.shared.files import file_digest
from stages.shared.source_images import pack
from synthetic_images import TARGET_CLASSES, draw_target
from synthetic_images.many import draw_many

KEY = "dataset.source"
MANY_FILES = 20_000  # beyond, they are packed into one
FIRST_TEST_INDEX = 10**9  # far from train's, so that the test pictures stay when num_train changes


def bring_dataset(
    images: Path,
    *,
    source: str,
    checksum: str | None,
    labels: str | None = None,
    num_train: int,
    num_test: int,
    side: int,
    seed: int,
    cache: Path,
    mirror: str | None = None,
) -> dict[str, Any]:
    """Build the folder `images` (train/ and test/, or class folders) and return the facts for source.json.

    source: http(s) URL or path of an archive, path of a folder, or `synthetic`. checksum: of the archive.
    labels: path of a CSV in the source, which then says what the folders would.
    num_train, num_test: drawn pictures over all classes; side: their longest side in pixels.
    Raises ValueError (what to change) or TransientError (worth another try).
    """
    tree = images.with_name("unpacked")
    archive: Path | None = None
    if source == "synthetic":
        kind = "synthetic"
        draw_images(tree, num_train=num_train, num_test=num_test, side=side, seed=seed)
    elif not is_url(source) and Path(source).is_dir():
        kind = "folder"
        copy_folder(Path(source), tree)
    else:
        kind = "url" if is_url(source) else "archive"
        archive = _archive(source, checksum, cache, mirror)
        unpack(archive, tree)
    place_images(tree, images, labels)
    facts = describe_tree(images)
    if not facts["num_files"]:
        raise ValueError(
            f"{KEY}: {masked(source)} holds no files in folders; expected train/ and test/, or class folders"
        )
    facts["sha256"] = file_digest(archive) if archive else facts["sha256"]
    if facts["num_files"] > MANY_FILES:
        pack(images)
    return {"kind": kind, "source": masked(source), "checksum": checksum if archive else None, **facts}


def _archive(source: str, checksum: str | None, cache: Path, mirror: str | None) -> Path:
    """The archive as a verified local file."""
    if is_url(source):
        return fetch(source, checksum=checksum, key=KEY, cache=cache, mirror=mirror)
    path = Path(source)
    if not path.is_file():
        found = "is neither file nor folder" if path.exists() else "does not exist"
        allowed = "an http(s) URL, a local zip or tar archive, a local folder of class folders, or synthetic"
        raise ValueError(f"{KEY}: {source!r} {found} (seen from {Path.cwd()}); allowed: {allowed}")
    if checksum:
        digests.check(path, checksum, key=KEY, shown=source)
    return path


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder's files and empty folders. A link to a file is followed while it stays in the folder.

    Raises ValueError naming a link that leaves it, a link to a folder (it could be endless), or a special file.
    """
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"{KEY}: {str(source)!r} contains the folder it would be copied to; name the image folder itself"
        )
    target.mkdir(parents=True)
    for path in tqdm(_walk(source), desc=f"copy {source.name}", unit=" files", disable=None):
        relative = path.relative_to(source)
        if is_junk(relative):
            continue
        if path.is_dir() and not path.is_symlink():
            (target / relative).mkdir()
            continue
        _refuse_special_file(path, source)
        shutil.copyfile(path, target / relative)


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below `folder` in the order of names, folders before what they hold; links are not entered."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _refuse_special_file(path: Path, source: Path) -> None:
    advice = f"copy the folder with `cp -rL` and set {KEY} to the copy"
    if path.is_symlink() and (problem := _broken(path)):
        raise ValueError(f"{path}: a link that {problem}; delete the link")
    if not stat.S_ISREG(path.stat().st_mode):
        found = (
            f"a link to a folder; delete the link, or {advice}" if path.is_dir() else "no file but a device; delete it"
        )
        raise ValueError(f"{path}: {found}")
    if path.is_symlink() and not path.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{path}: a link that leaves {KEY} ({source}); {advice}")


def _broken(link: Path) -> str | None:
    """Say what is wrong with a link that no copy can follow: `cp -rL` would fail on it, or never end."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # which of them for links in a circle depends on Python's version
        return "leads nowhere, or back to itself"
    return "leads to a folder that it lies in" if link.parent.resolve().is_relative_to(target) else None


def draw_images(target: Path, *, num_train: int, num_test: int, side: int, seed: int) -> None:
    """Draw target/{train,test}/{class}/00000.png …; the counts are over all classes, as equal as they can be."""
    for split, total, first in (("train", num_train, 0), ("test", num_test, FIRST_TEST_INDEX)):
        if total < len(TARGET_CLASSES):
            raise ValueError(
                f"dataset.synthetic.num_{split} is {total}; make it at least {len(TARGET_CLASSES)}, one a class"
            )
        for class_name in TARGET_CLASSES:
            (target / split / class_name).mkdir(parents=True, exist_ok=True)
        numbers = [position // len(TARGET_CLASSES) for position in range(total)]  # of each picture in its class
        names = [TARGET_CLASSES[position % len(TARGET_CLASSES)] for position in range(total)]
        drawn = draw_many(draw_target, names, [first + number for number in numbers], seed, side)
        bar = tqdm(drawn, total=total, desc=f"draw {split}", unit=" images", disable=None)
        for name, number, pixels in zip(names, numbers, bar, strict=True):
            Image.fromarray(pixels).save(target / split / name / f"{number:05d}.png", compress_level=1)


def place_images(tree: Path, images: Path, labels: str | None = None) -> None:
    """Rename `tree` to `images` without the single folder (or folders) around its class folders, or around the CSV `labels`.

    Files beside such a folder belong to no class and are left out.
    """
    root = tree
    while (inner := _only_folder(root, labels)) is not None:
        beside = [path.name for path in root.iterdir() if path != inner]
        if beside:
            print(f"{KEY}: left out beside {inner.name}/: {', '.join(sorted(beside)[:5])}", flush=True)
        root = inner
    if labels and not (root / labels).is_file():
        found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.csv"))
        there = f"it has {', '.join(found[:5])}" if found else "it has no CSV"
        raise ValueError(f"dataset.labels: {labels}: no such file in the dataset; {there}")
    root.rename(images)
    shutil.rmtree(tree, ignore_errors=True)


def _only_folder(folder: Path, labels: str | None) -> Path | None:
    """The only folder in `folder`, if it has folders itself: else it is a class. With `labels`: if these lie further in."""
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if len(folders) != 1 or (labels and (folder / labels).is_file()):
        return None
    inner = (path for path in folders[0].iterdir() if path.is_dir() and not path.name.startswith("."))
    return folders[0] if labels or any(inner) else None


def describe_tree(root: Path) -> dict[str, Any]:
    """{"sha256", "num_files", "num_bytes"}: the digest runs over sorted relative paths and the files' digests."""
    digest, num_files, num_bytes = hashlib.sha256(), 0, 0
    for path in sorted(
        (path for path in root.rglob("*") if path.is_file()), key=lambda path: path.relative_to(root).as_posix()
    ):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_digest(path)}\n".encode("utf-8", "surrogateescape"))
        num_files, num_bytes = num_files + 1, num_bytes + path.stat().st_size
    return {"sha256": digest.hexdigest(), "num_files": num_files, "num_bytes": num_bytes}
