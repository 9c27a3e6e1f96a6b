"""Which files belong to which class and split, from the folders alone."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A file in a class folder; nothing is known of its content yet."""

    path: str  # relative to the images folder, with /, printable in UTF-8
    file: Path
    label: int
    split: str | None  # train, test, or None where the folders do not say


@dataclass(frozen=True)
class Layout:
    class_names: tuple[str, ...]  # sorted
    splits: tuple[str | None, ...]  # (train, test), or (None,)
    sources: tuple[Source, ...]  # sorted by path
    ignored: tuple[str, ...]  # folders and files that belong to no class


def find_images(images_dir: Path) -> Layout:
    """Read `train/<class>/…` and `test/<class>/…`, or `<class>/…` alone.

    Raises ValueError when there are fewer than two classes, or the two splits have different ones.
    """
    if not images_dir.is_dir():
        raise ValueError(f"{images_dir}: no such folder; run download")
    folders = _folders(images_dir)
    split_names: list[str] = [name for name in ("train", "test") if name in folders]
    if len(split_names) == 1:
        raise ValueError(
            f"{images_dir}: has {split_names[0]}/ but not its counterpart (folders: {', '.join(folders)}); "
            "give both train/ and test/, or class folders alone"
        )
    splits: dict[str | None, Path] = {name: images_dir / name for name in split_names} or {None: images_dir}
    class_names = _class_names(splits)
    sources = [
        Source(printable(file.relative_to(images_dir).as_posix()), file, label, split)
        for split, folder in splits.items()
        for label, name in enumerate(class_names)
        for file in _files(folder / name)
    ]
    known = {images_dir: split_names} if split_names else {}
    ignored = _strangers(images_dir, known | dict.fromkeys(splits.values(), class_names))
    names = tuple(printable(name) for name in class_names)
    return Layout(names, tuple(splits), tuple(sorted(sources, key=lambda source: source.path)), ignored)


def _strangers(images_dir: Path, known: dict[Path, list[str]]) -> tuple[str, ...]:
    entries = [entry for folder, names in known.items() for entry in folder.iterdir() if entry.name not in names]
    return tuple(sorted(printable(entry.relative_to(images_dir).as_posix()) for entry in entries))


def _class_names(splits: dict[str | None, Path]) -> list[str]:
    found = [_folders(folder) for folder in splits.values()]
    for folder, names in zip(splits.values(), found, strict=True):
        if len(names) < 2:
            listed = ", ".join(names) or "none"
            raise ValueError(f"{folder}: a classifier needs two class folders or more, found {listed}; add the others")
    if len(found) == 2 and found[0] != found[1]:
        odd = ", ".join(sorted(set(found[0]) ^ set(found[1])))
        first, second = splits.values()
        raise ValueError(f"{first} and {second} differ in class folders: {odd}; give both the same classes")
    return found[0]


def _folders(folder: Path) -> list[str]:
    """Names of the subfolders; hidden ones, macOS's archive leftovers and links are none of ours."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(name for name in names if not name.startswith((".", "__MACOSX")))


def _files(folder: Path) -> list[Path]:
    """Every regular file below `folder`, at any depth; links are not followed."""
    found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return [file for file in found if file.is_file() and not file.is_symlink()]


def printable(name: str) -> str:
    """A file name's bytes that are not UTF-8 (from old archives) as \\xNN, so that JSON can hold it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
