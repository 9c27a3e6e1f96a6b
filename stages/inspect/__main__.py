"""Look at the data: python -m stages.inspect; with --write PATH it proposes a fix list instead.

Finds near-duplicates within and across the splits and labels that are probably wrong, takes from training what leaks into
the test split, and deals the rest into folds for validation. Test images are read without their labels.

artifacts/inspect/report.json     label_issues (surest first), leaks, duplicates, odd, and counts
artifacts/inspect/fragment.html   the same with pictures, for the report
artifacts/inspect/folds.npz       each training image's fold (stages/shared/held_out.py)
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from stages.inspect.duplicates import Pair, find_pairs
from stages.inspect.folds import assign_folds, check_classes, group_images
from stages.inspect.fragment import render, shown_files
from stages.inspect.labels import LabelIssue, find_wrong_labels, out_of_fold_probabilities
from stages.inspect.odd import Looks, find_odd, looks_of
from stages.inspect.proposals import check_free, propose, write_proposals
from stages.inspect.structure import structure_of
from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.dataset import (
    TrainSplit,
    chunks_of_crops,
    fixed_crops,
    load_manifest,
    load_test_files,
    load_test_pixels,
    load_train_split,
)
from stages.shared.encoded import Crops
from stages.shared.files import write_json, write_text
from stages.shared.held_out import LEFT_OUT, save_folds
from stages.shared.params import load_params
from stages.shared.transforms import Transform

CHUNK = 512  # images whose crops lie in memory at a time, as floats too


def main(*words: str) -> None:
    if proposals := read_words(words):
        check_free(proposals)
    params = load_params().inspect
    manifest, train = load_manifest(artifacts.MANIFEST), load_train_split(artifacts.TRAIN_SPLIT)
    test, test_files = load_test_pixels(artifacts.TEST_SPLIT), load_test_files(artifacts.TEST_SPLIT)
    features = load_file(artifacts.FEATURES / "train.safetensors")
    all_features = np.concatenate([features["crop"], load_file(artifacts.FEATURES / "test.safetensors")["crop"]])
    paths = [*manifest.train_paths, *(file.path for file in test_files)]  # of all images, the test split's last
    labels, digests = np.asarray(train.labels), {entry.path: entry.sha256 for entry in manifest.train}

    structure, looks = read_images(train, test, manifest.transform)
    pairs = find_pairs(structure, all_features, features["mirror"])
    groups = group_images(len(paths), [(pair.first, pair.second) for pair in pairs])
    leaking = leaking_rows(groups, len(train))
    left_out = leaking if params.leaks == "drop" else []
    check_classes(labels, left_out, manifest.class_names)
    folds = assign_folds(labels, list(digests.values()), groups[: len(train)], left_out)
    judged = load_file(artifacts.inspected_features(params.size, manifest.transform.crop))
    probabilities = out_of_fold_probabilities(
        judged["crop"], judged["mirror"], labels, folds, len(manifest.class_names)
    )
    issues = find_wrong_labels(probabilities, labels, np.flatnonzero(folds != LEFT_OUT))
    odd = find_odd(looks, train.sizes, features["crop"], labels, manifest.transform.crop)

    report = describe(pairs, leaking, folds, issues, odd, labels, paths, manifest.class_names)
    report["sizes"] = describe_sizes(np.asarray(train.sizes))
    if proposals:
        write_proposals(proposals, propose(report, digests))
        print(f"inspect: {proposals} proposes fixes; edit it, then set dataset.fixes to it", flush=True)
        return
    save_folds(artifacts.INSPECTION / "folds.npz", folds)
    write_json(artifacts.INSPECTION / "report.json", report)
    crops = read_pictures(shown_files(report), paths, train, test, manifest.transform)
    write_text(artifacts.INSPECTION / "fragment.html", render(report, crops, all_features, labels, paths))
    print(summarize(report), flush=True)


def read_words(words: Sequence[str]) -> Path | None:
    """Path to write proposals to: `--write PATH` alone is known."""
    if not words:
        return None
    if len(words) != 2 or words[0] != "--write":
        raise ValueError(f"unknown words {' '.join(words)!r}; known is --write PATH, which proposes a fix list")
    return Path(words[1])


def read_images(train: TrainSplit, test: Crops, transform: Transform) -> tuple[np.ndarray, Looks]:
    """The structure (N, side, side) of all images, the test split's last, and the looks of the training images."""
    structure, looks = [], []
    for crops in chunks_of_crops(train, range(len(train)), transform, CHUNK):
        structure.append(structure_of(crops))
        looks.append(looks_of(crops))
    structure += [structure_of(test[start : start + CHUNK]) for start in range(0, len(test), CHUNK)]
    return np.concatenate(structure), Looks(*(np.concatenate(parts) for parts in zip(*looks, strict=True)))


def leaking_rows(groups: np.ndarray, num_train: int) -> list[int]:
    """Training images that a chain of pairs connects to a test image; `groups` (N,) are of all images, the test split's last.

    Of many copies not every one is paired with the test image itself: they are each other's nearest neighbours.
    """
    return np.flatnonzero(np.isin(groups[:num_train], groups[num_train:])).tolist()


def read_pictures(
    files: Iterable[str], paths: Sequence[str], train: TrainSplit, test: Crops, transform: Transform
) -> dict[str, np.ndarray]:
    """Each file's picture as the network is fed, uint8 (crop, crop, 3)."""
    row_of = {path: row for row, path in enumerate(paths)}
    rows = {file: row_of[file] for file in files}
    return {
        file: fixed_crops(train, [row], transform)[0] if row < len(train) else test[row - len(train)]
        for file, row in rows.items()
    }


def describe(
    pairs: Sequence[Pair],
    leaking: Sequence[int],
    folds: np.ndarray,
    issues: Sequence[LabelIssue],
    odd: Mapping[int, Sequence[str]],
    labels: np.ndarray,
    paths: Sequence[str],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """The report, ready for JSON."""
    num = len(labels)
    direct = {pair.first for pair in pairs if pair.first < num <= pair.second}
    return {
        "num_train": num,
        "num_test": len(paths) - num,
        "balance": dict(zip(class_names, np.bincount(labels, minlength=len(class_names)).tolist(), strict=True)),
        "folds": {"number": int(folds.max()) + 1, "images": np.bincount(folds[folds != LEFT_OUT]).tolist()},
        "left_out": int((folds == LEFT_OUT).sum()),
        "leaks": [describe_leak(pair, paths) for pair in pairs if pair.first < num <= pair.second],
        "copies_of_leaks": [paths[row] for row in leaking if row not in direct],
        "duplicates": {
            "train": [describe_pair(pair, paths) for pair in pairs if pair.second < num],
            "test": [describe_pair(pair, paths) for pair in pairs if pair.first >= num],
        },
        "label_issues": [describe_issue(issue, paths, class_names) for issue in issues],
        "odd": [{"file": paths[row], "reasons": list(reasons)} for row, reasons in odd.items()],
    }


def describe_sizes(sizes: np.ndarray) -> dict[str, list[int]]:
    """Width and height of the training images of the smallest, the median and the largest area; `sizes` (n, 2) are height, width."""
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    places = {"smallest": 0, "median": len(order) // 2, "largest": -1}
    return {name: sizes[order[place]][::-1].tolist() for name, place in places.items()}


def describe_leak(pair: Pair, paths: Sequence[str]) -> dict[str, Any]:
    found = {"train": paths[pair.first], "test": paths[pair.second]}
    return {**found, "distance": round(pair.distance, 4), "mirrored": pair.mirrored}


def describe_pair(pair: Pair, paths: Sequence[str]) -> dict[str, Any]:
    files = [paths[pair.first], paths[pair.second]]
    return {"files": files, "distance": round(pair.distance, 4), "mirrored": pair.mirrored}


def describe_issue(issue: LabelIssue, paths: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "file": paths[issue.row],
        "given": class_names[issue.given],
        "proposed": class_names[issue.proposed],
        "confidence": round(issue.confidence, 4),
    }


def summarize(report: dict[str, Any]) -> str:
    """One line for the log."""
    return (
        f"inspect: {len(report['leaks'])} near-duplicates across the splits ({report['left_out']} training images left out), "
        f"{len(report['duplicates']['train'])} within train, {len(report['label_issues'])} labels to look at; "
        f"{report['folds']['number']} folds: names in {artifacts.INSPECTION / 'report.json'}"
    )


if __name__ == "__main__":
    run(main)
