"""Report what happened to the images: counts for people and DVC, names for whoever mends the data set."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stages.preprocess.find import Layout
from stages.preprocess.split import Split
from stages.preprocess.store import Image, Skipped

MAX_NAMES = 100  # of each kind
KINDS = ("not_image", "too_large", "corrupt")


def check_usable(layout: Layout, images: Sequence[Image], skipped: Sequence[Skipped]) -> None:
    """Raise ValueError naming every class of a split without a single image that can be used, and why."""
    usable = Counter((image.source.split, image.source.label) for image in images)
    lost = Counter((entry.source.split, entry.source.label) for entry in skipped)
    found = Counter((source.split, source.label) for source in layout.sources)
    empty = [
        f"{_place(folders, split, name)} ({_why_empty(skipped, split, label, lost[split, label], found[split, label])})"
        for split, folders in layout.folders.items()
        for label, name in enumerate(layout.class_names)
        if not usable[split, label]
    ]
    if empty:
        raise ValueError(f"no usable image in {'; '.join(empty)}; add images, or take the class out")


def build_report(layout: Layout, skipped: Sequence[Skipped], split: Split, side: int) -> dict[str, Any]:
    """The report, ready for JSON. The same input gives the same bytes."""
    used = [*split.train, *split.test]
    kinds = Counter(entry.kind for entry in skipped)
    names = {kind: _capped(e.reason for e in skipped if e.kind == kind) for kind in KINDS}
    names["removed_from_train"] = _capped(f"{a.source.path} = {b.source.path}" for a, b in split.removed)
    names["conflicting_labels"] = _capped(" = ".join(i.source.path for i in group) for group in split.conflicting)
    return {
        "train": _count(split.train, layout.class_names),
        "test": _count(split.test, layout.class_names),
        "split_folders": _split_folders(layout, used),
        "remarks": list(layout.remarks),
        "canvas_side": side,
        "downscaled": sum(image.downscaled for image in split.train),
        "exif_rotated": sum(image.rotated for image in used),
        "modes": dict(sorted(Counter(image.mode for image in used).items())),
        "skipped": {kind: kinds[kind] for kind in KINDS} | {"outside_classes": len(layout.ignored)},
        "duplicates": {
            "within_train": len(split.train) - len({image.sha256 for image in split.train}),
            "within_test": len(split.test) - len({image.sha256 for image in split.test}),
            "removed_from_train": len(split.removed),
            "conflicting_labels": len(split.conflicting),
        },
        "names": names | {"outside_classes": _capped(layout.ignored)},
    }


def _place(folders: Sequence[Path], split: str | None, name: str) -> str:
    return f"class folder {folders[0] / name}" if folders else f"class {name} of {split or 'the dataset'}"


def _why_empty(skipped: Sequence[Skipped], split: str | None, label: int, lost: int, found: int) -> str:
    if found > lost:
        return f"the fix list leaves none of its {found} files"
    if not lost:
        return "it holds no file"
    first = next(e.reason for e in skipped if (e.source.split, e.source.label) == (split, label))
    return f"none of its {lost} files can be used, the first because {first}"


def _split_folders(layout: Layout, images: Sequence[Image]) -> dict[str, dict[str, int]]:
    """The number of images that each split has from which of the dataset's folders; empty where the folders do not say."""
    return {
        split: {folder.name: sum(folder in image.source.file.parents for image in images) for folder in folders}
        for split, folders in layout.folders.items()
        if split and folders
    }


def _count(images: Sequence[Image], class_names: Sequence[str]) -> dict[str, Any]:
    labels = Counter(image.source.label for image in images)
    return {"images": len(images), "classes": {name: labels[label] for label, name in enumerate(class_names)}}


def _capped(names: Iterable[str]) -> list[str]:
    listed = list(names)
    rest = len(listed) - MAX_NAMES
    return listed if rest <= 0 else [*listed[:MAX_NAMES], f"and {rest} more"]
