"""Apply the fix list: what a person decided about single images, whenever the data are prepared again.

    - {file: train/hotdog/7.jpg, sha256: 1f2e…, action: relabel, label: not-hotdog, reason: a taco}

An entry holds for one image: the file of that name, if it has that content. `action` is drop, relabel (to `label`) or
move (to `split`, train or test).
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.preprocess.find import Source
from stages.preprocess.store import Image
from stages.shared.dataset import NOT_IN_TEST

KEY = "dataset.fixes"
NEEDED, ALLOWED = {"file", "sha256", "action"}, {"file", "sha256", "action", "label", "split", "reason"}


@dataclass(frozen=True)
class Fix:
    action: str  # drop, relabel, move
    file: str  # relative to the images folder, as the manifest has it
    sha256: str  # of the decoded pixels and their shape
    label: str | None = None  # the class that `relabel` gives
    split: str | None = None  # where `move` puts the image


def read_fixes(path: Path, class_names: Collection[str]) -> dict[str, Fix]:
    """The list's entries by file. Raises ValueError naming the file, the entry and what is allowed."""
    try:
        entries = YAML(typ="safe").load(path) or []
    except FileNotFoundError:
        raise ValueError(f"{KEY}: {path}: no such file; name an existing one, such as an empty fixes.yaml") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{KEY}: {path}: not valid YAML: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f"{KEY}: {path}: holds a {type(entries).__name__}, expected a list of entries")
    fixes: dict[str, Fix] = {}
    for number, entry in enumerate(entries, 1):
        fix = _read_fix(f"{KEY}: {path}: entry {number}", entry, class_names)
        if fix.file in fixes:
            raise ValueError(f"{KEY}: {path}: entry {number}: a second one for {fix.file}; keep one of the two")
        fixes[fix.file] = fix
    return fixes


def _read_fix(where: str, entry: Any, class_names: Collection[str]) -> Fix:
    if not isinstance(entry, Mapping) or not NEEDED <= entry.keys() <= ALLOWED:
        raise ValueError(
            f"{where}: needs {', '.join(sorted(NEEDED))}; may have label, split, reason; found {entry!r:.200}"
        )
    fix = Fix(**{key: str(value) for key, value in entry.items() if key != "reason"})
    if fix.action not in ("drop", "relabel", "move"):
        raise ValueError(f"{where}: action {fix.action!r}; allowed are drop, relabel, move")
    if fix.action == "relabel" and fix.label not in class_names:
        raise ValueError(f"{where}: label {fix.label!r}; the classes are {', '.join(class_names)}")
    if fix.action == "move" and fix.split not in ("train", "test"):
        raise ValueError(f"{where}: split {fix.split!r}; allowed are train, test")
    return fix


def free_moved(sources: Sequence[Source], fixes: Mapping[str, Fix]) -> list[Source]:
    """The sources, without a split where one is to move: such an image is stored in the form of either."""
    moved = {fix.file for fix in fixes.values() if fix.action == "move"}
    return [replace(source, split=None) if source.path in moved else source for source in sources]


def apply_fixes(
    images: Sequence[Image], fixes: Mapping[str, Fix], sources: Sequence[Source], class_names: Sequence[str]
) -> tuple[list[Image], dict[str, Any]]:
    """The images as the list has them, and what the report says of it. `sources` have the splits of the folders."""
    folders_split = {source.path: source.split for source in sources}
    fixed, used, counts = [], set[str](), Counter[str]()
    for image in images:
        source = replace(image.source, split=folders_split[image.source.path])
        fix = fixes.get(source.path)
        if fix and fix.sha256 == image.sha256:
            used.add(source.path)
            counts[fix.action] += 1
            counts["of_test_images"] += source.split == "test"
            counts["dropped_test_images"] += source.split == "test" and fix.action == "drop"
            if fix.action == "drop":
                continue
            if fix.action == "relabel":
                source = replace(source, label=class_names.index(str(fix.label)))
            else:
                source = replace(source, split=fix.split)
        fixed.append(replace(image, source=source))
    names = ("drop", "relabel", "move", "of_test_images", "dropped_test_images")
    return fixed, {**{name: counts[name] for name in names}, "not_found": sorted(fixes.keys() - used)}


def labels_before_fixes(test: Sequence[Image], sources: Sequence[Source]) -> np.ndarray:
    """(m,) int64: each test image's label by its folder, NOT_IN_TEST where the list moved it here from the training folders."""
    folders = {source.path: source for source in sources}
    found = [folders[image.source.path] for image in test]
    return np.array([NOT_IN_TEST if source.split == "train" else source.label for source in found], dtype=np.int64)
