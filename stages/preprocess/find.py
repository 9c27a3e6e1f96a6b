"""Find which files belong to which class and split, from the folders alone."""

import os
from dataclasses import dataclass
from pathlib import Path

SPLIT_NAMES = {  # of folders, in any case
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class Source:
    """A file that has a class; nothing is known of its content yet."""

    path: str  # relative to the images folder, with /, printable in UTF-8
    file: Path
    label: int
    split: str | None  # train, test, or None where the source does not say


@dataclass(frozen=True)
class Layout:
    class_names: tuple[str, ...]  # sorted
    # Of train and test, or of None where the source does not say; none of a CSV's.
    folders: dict[str | None, tuple[Path, ...]]
    sources: tuple[Source, ...]  # sorted by path
    ignored: tuple[str, ...]  # folders and files that belong to no class
    remarks: tuple[str, ...]  # what a person should know of how the source was read


def find_images(images_dir: Path) -> Layout:
    """Read `train/<class>/…` and `test/<class>/…` under any of their usual names, or `<class>/…` alone.

    Raises ValueError when there are fewer than two classes, or the splits have different ones.
    """
    if not images_dir.is_dir():
        raise ValueError(f"{images_dir}: no such folder; run download")
    folders, remarks = _split_folders(images_dir)
    class_names = _class_names(folders)
    sources = [
        Source(printable(file.relative_to(images_dir).as_posix()), file, label, split)
        for split, split_folders in folders.items()
        for folder in split_folders
        for label, name in enumerate(class_names)
        if (folder / name).is_dir()
        for file in _files(folder / name)
    ]
    known = {folder: class_names for split_folders in folders.values() for folder in split_folders}
    if None not in folders:
        known[images_dir] = [folder.name for folder in known]
    names = tuple(printable(name) for name in class_names)
    sources.sort(key=lambda source: source.path)
    return Layout(names, folders, tuple(sources), _strangers(images_dir, known), tuple(remarks))


def _split_folders(images_dir: Path) -> tuple[dict[str | None, tuple[Path, ...]], list[str]]:
    """The folders of each split, and what was decided about a validation folder."""
    named = {role: [n for n in _folders(images_dir) if n.casefold() in names] for role, names in SPLIT_NAMES.items()}
    # A folder `train` without folders in it, beside others, may well be a class of locomotives.
    if sum(map(bool, named.values())) < 2:
        named = {role: [n for n in names if _folders(images_dir / n)] for role, names in named.items()}
    for role, names in named.items():
        if len(names) > 1:
            raise ValueError(f"{images_dir}: {' and '.join(names)} both mean the {role} split; put one into the other")
    paths = {role: tuple(images_dir / name for name in names) for role, names in named.items()}
    train, validation, test = paths["training"], paths["validation"], paths["test"]
    if not (train or validation or test):
        _refuse_unknown_splits(images_dir)
        return {None: (images_dir,)}, []
    if not train or not (validation or test):
        (found,) = train or validation[:1] or test
        raise ValueError(
            f"{images_dir}: has {found.name}/ but not its counterpart (folders: {', '.join(_folders(images_dir))}); "
            "give both train/ and test/, or class folders alone"
        )
    if not test:
        remark = f"{validation[0].name}/ serves as the test split, for there is no test/"
        return {"train": train, "test": validation}, [remark]
    remarks = [
        f"{folder.name}/ is part of training, whose folds are what recipes are validated on" for folder in validation
    ]
    return {"train": (*train, *validation), "test": test}, remarks


def _refuse_unknown_splits(images_dir: Path) -> None:
    """Raises ValueError where all folders hold the same subfolders, the classes, and one is called like a split."""
    inside = {name: _folders(images_dir / name) for name in _folders(images_dir)}
    first = next(iter(inside.values()), [])
    of_splits = tuple(name for names in SPLIT_NAMES.values() for name in names)
    like_a_split = any(name.casefold().startswith(of_splits) for name in inside)
    if like_a_split and len(inside) > 1 and len(first) > 1 and all(names == first for names in inside.values()):
        raise ValueError(
            f"{images_dir}: {' and '.join(inside)} hold the same folders ({', '.join(first)}); if they are splits, call them "
            "train and test; if they are classes, give them other names, or list the files in a CSV (dataset.labels)"
        )


def _strangers(images_dir: Path, known: dict[Path, list[str]]) -> tuple[str, ...]:
    entries = [entry for folder, names in known.items() for entry in folder.iterdir() if entry.name not in names]
    return tuple(sorted(printable(entry.relative_to(images_dir).as_posix()) for entry in entries))


def _class_names(folders: dict[str | None, tuple[Path, ...]]) -> list[str]:
    """The first folder's classes, which every other split has too; a second folder of training may lack some."""
    for folder in (split_folders[0] for split_folders in folders.values()):
        if len(names := _folders(folder)) < 2:
            listed = ", ".join(names) or "none"
            tables = [f", or set dataset.labels to {path.name}, if it has the classes" for path in folder.glob("*.csv")]
            raise ValueError(
                f"{folder}: a classifier needs two class folders or more, found {listed}; add the others{''.join(tables[:1])}"
            )
    first = next(iter(folders.values()))[0]
    names = _folders(first)
    for split_folders in folders.values():
        for position, folder in enumerate(split_folders):
            odd = set(names) ^ set(_folders(folder)) if position == 0 else set(_folders(folder)) - set(names)
            if odd:
                raise ValueError(
                    f"{first} and {folder} differ in class folders: {', '.join(sorted(odd))}; give both the same classes"
                )
    return names


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
