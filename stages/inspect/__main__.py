"""Look at the data: python -m stages.inspect.

Finds near-duplicates within and across the splits and labels that are probably wrong, takes from training what leaks into
the test split, and deals the rest into folds for validation. Test images are read without their labels.

artifacts/inspect/report.json   label_issues (surest first), leaks, duplicates, and counts
artifacts/inspect/folds.npz     fold int64 (n,): each training image's fold, -1 where it is taken out of training
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from stages.inspect.duplicates import Pair, find_pairs
from stages.inspect.folds import LEFT_OUT, assign_folds, check_classes, group_images
from stages.inspect.labels import LabelIssue, find_wrong_labels, out_of_fold_probabilities
from stages.inspect.structure import structure_of
from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.dataset import (
    fixed_crops,
    load_manifest,
    load_test_files,
    load_test_pixels,
    load_train_split,
)
from stages.shared.files import replacing, write_json
from stages.shared.params import load_params

CHUNK = 512  # images whose crops lie in memory at a time


def main() -> None:
    drop_leaks = load_params().inspect.leaks == "drop"
    manifest, train = load_manifest(artifacts.MANIFEST), load_train_split(artifacts.TRAIN_SPLIT)
    test, test_files = load_test_pixels(artifacts.TEST_SPLIT), load_test_files(artifacts.TEST_SPLIT)
    labels, digests = np.asarray(train.labels), [entry.sha256 for entry in manifest.train]
    paths = [*manifest.train_paths, *(file.path for file in test_files)]  # of all images, the test split's last
    features = load_file(artifacts.FEATURES / "train.safetensors")
    crop, mirror = features["crop"], features["mirror"]
    all_crop = np.concatenate([crop, load_file(artifacts.FEATURES / "test.safetensors")["crop"]])

    train_crops = (fixed_crops(train, rows, manifest.transform) for rows in chunks(len(train)))
    structure = np.concatenate(
        [structure_of(part) for part in chain(train_crops, (test[rows] for rows in chunks(len(test))))]
    )
    pairs = find_pairs(structure, all_crop, mirror)
    within = [pair for pair in pairs if pair.second < len(train)]
    leaks = [pair for pair in pairs if pair.first < len(train) <= pair.second]

    left_out = {pair.first for pair in leaks} if drop_leaks else set()
    check_classes(labels, left_out, manifest.class_names)
    folds = assign_folds(
        labels, digests, group_images(len(train), [(pair.first, pair.second) for pair in within]), left_out
    )
    probabilities = out_of_fold_probabilities(crop, mirror, labels, folds, len(manifest.class_names))
    issues = find_wrong_labels(probabilities, labels, np.flatnonzero(folds != LEFT_OUT))

    with replacing(artifacts.INSPECTION / "folds.npz") as part, part.open("wb") as file:
        np.savez(file, fold=folds)
    report = {
        "num_train": len(train),
        "num_test": len(test),
        "folds": {"number": int(folds.max()) + 1, "images": np.bincount(folds[folds != LEFT_OUT]).tolist()},
        "left_out": len(left_out),
        "leaks": [describe_leak(pair, paths) for pair in leaks],
        "duplicates": {
            "train": [describe_pair(pair, paths) for pair in within],
            "test": [describe_pair(pair, paths) for pair in pairs if pair.first >= len(train)],
        },
        "label_issues": [describe_issue(issue, paths, manifest.class_names) for issue in issues],
    }
    write_json(artifacts.INSPECTION / "report.json", report)
    print(summarize(report), flush=True)


def chunks(num_images: int) -> Iterator[range]:
    return (range(start, min(start + CHUNK, num_images)) for start in range(0, num_images, CHUNK))


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
