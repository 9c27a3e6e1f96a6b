"""Hold the inspect stage's report against what was planted, and the accuracy with its proposals against that without."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.planted_faults.plant import Planted
from stages.inspect.folds import assign_folds
from stages.inspect.proposals import propose
from stages.shared import artifacts
from stages.shared.dataset import Manifest, load_manifest, load_test_files, load_test_split
from stages.shared.probe import fit_probe, views_of

DROPPED = -1  # instead of a label


def found_labels(report: Mapping[str, Any], planted: Planted) -> dict[str, int]:
    """Count the flipped labels that are flagged, and all flags. Flags of odd pictures are held for right."""
    flagged = {issue["file"]: issue["proposed"] for issue in report["label_issues"] if issue["file"] not in planted.odd}
    found = planted.flipped.keys() & flagged.keys()
    return {
        "flips": len(planted.flipped),
        "flips_found": len(found),
        "flips_put_right": sum(flagged[file] == planted.flipped[file] for file in found),
        "flags": len(flagged),
    }


def found_leaks(report: Mapping[str, Any], planted: Planted) -> dict[str, Any]:
    """A leak counts as found where it is paired with the test image that it shows."""
    pairs = {(leak["train"], leak["test"]) for leak in report["leaks"]}
    found = [change for file, (shown, change) in planted.leaks.items() if (file, shown) in pairs]
    by_change, num = Counter(found), Counter(change for _, change in planted.leaks.values())
    clean = {train for train, _ in pairs} - planted.leaks.keys() - planted.odd.keys()
    return {
        "leaks": len(planted.leaks),
        "leaks_found": len(found),
        "leaks_by_change": {change: f"{by_change[change]} of {num[change]}" for change in num},
        "clean_images": report["num_train"] - len(planted.leaks) - len(planted.odd),
        "clean_held_for_leaks": len(clean),
    }


def found_odd(report: Mapping[str, Any], planted: Planted) -> dict[str, int]:
    reasons = {entry["file"]: entry["reasons"] for entry in report["odd"]}
    found = sum(kind in reasons.get(file, ()) for file, kind in planted.odd.items())
    return {"odd": len(planted.odd), "odd_found": found, "odd_flags": len(reasons)}


def accuracies(report: Mapping[str, Any], planted: Planted) -> dict[str, float]:
    """Of a probe on frozen features (the recipe `head: probe, epochs: 0`), on the test images that were not leaked.

    Trained on the clean images, on all that lies there, on what the proposed fix list makes of it, and on what is left of that
    list after a person has struck out what is wrong and put right what is labelled otherwise.
    """
    manifest, rows = load_manifest(artifacts.MANIFEST), range(len(load_manifest(artifacts.MANIFEST).train))
    names = manifest.class_names
    given = np.array([entry.label for entry in manifest.train])
    added = planted.leaks.keys() | planted.odd.keys()
    files = [entry.path for entry in manifest.train]
    true = np.array(
        [
            names.index(planted.flipped[file]) if file in planted.flipped else given[row]
            for row, file in zip(rows, files, strict=True)
        ]
    )
    clean = np.array([DROPPED if file in added else true[row] for row, file in zip(rows, files, strict=True)])
    proposals = {fix["file"]: fix for fix in propose(report, {entry.path: entry.sha256 for entry in manifest.train})}
    fixed, reviewed = given.copy(), given.copy()
    for row, file in enumerate(files):
        if file in proposals:
            is_relabelling = proposals[file]["action"] == "relabel"
            fixed[row] = names.index(proposals[file]["label"]) if is_relabelling else DROPPED
            reviewed[row] = clean[row]
    arms = {"clean": clean, "faulty": given, "fixed": fixed, "reviewed": reviewed}
    return {f"accuracy_{arm}": round(probe_accuracy(manifest, labels, planted), 4) for arm, labels in arms.items()}


def probe_accuracy(manifest: Manifest, labels: np.ndarray, planted: Planted) -> float:
    features = load_file(artifacts.FEATURES / "train.safetensors")
    left_out = np.flatnonzero(labels == DROPPED).tolist()
    kept = np.where(labels == DROPPED, 0, labels)
    folds = assign_folds(kept, [entry.sha256 for entry in manifest.train], np.arange(len(kept)), left_out)
    probe = fit_probe(views_of(features), kept, folds, len(manifest.class_names), balanced=True)
    leaked = {shown for shown, _ in planted.leaks.values()}
    rows = [row for row, file in enumerate(load_test_files(artifacts.TEST_SPLIT)) if file.path not in leaked]
    test = load_file(artifacts.FEATURES / "test.safetensors")["crop"][rows]
    predicted = probe.head.logits(test).argmax(axis=1)
    return float((predicted == load_test_split(artifacts.TEST_SPLIT).labels[rows]).mean())
