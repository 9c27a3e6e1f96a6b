"""Measure what a look at the labels is worth: a probe's accuracy with true labels, with flipped ones, and after the fix list.

    python -m benchmarks.planted_faults.worth --real DIR --work DIR [--tasks …] [--seeds 20] [--flipped 0.05] [--size 224] [--write]

DIR as for benchmarks.quality. Each seed flips labels of a task's training images and asks the inspect stage's functions, which look
at `size` pixels. The list is applied as it is (`fixed`), or as a person leaves it who knows the true labels (`reviewed`; `again`: the
list of what is left, reviewed too). Images and features are the same for all seeds, so the intervals are of the flips alone. Leaks
and odd pictures are not planted: what they cost a probe is less than these sets can show. --write adds the rows to
results/planted_faults.json.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file

from benchmarks.planted_faults.__main__ import RESULT, SIZE
from benchmarks.planted_faults.plant import FLIPPED
from benchmarks.quality.tasks import ARCHITECTURE, CROP, Task, feature_files, prepare, task_names, working_in
from stages.features import both_ways, enlarged, extractor, save_features
from stages.inspect.folds import assign_folds
from stages.inspect.labels import find_wrong_labels, out_of_fold_probabilities
from stages.shared import artifacts
from stages.shared.calibration import log_loss
from stages.shared.dataset import load_manifest
from stages.shared.files import read_json, write_json
from stages.shared.probe import fit_probe, views_of

ARMS = ("clean", "faulty", "fixed", "reviewed", "again")
CPU = torch.device("cpu")
Row = dict[str, Any]


class Photos(NamedTuple):
    """A task's images as the network describes them, and what they show."""

    views: list[np.ndarray]  # (n, d) each: the training images as the probe sees them
    crop: np.ndarray  # (n, d): as the inspect stage sees them, perhaps at another size
    mirror: np.ndarray  # (n, d): and mirrored
    labels: np.ndarray  # (n,): true ones
    digests: list[str]
    test: np.ndarray  # (m, d)
    test_labels: np.ndarray  # (m,)

    def deal_folds(self, labels: np.ndarray) -> np.ndarray:
        return assign_folds(labels, self.digests, np.arange(len(labels)), ())

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planted_faults.worth", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--real", type=Path, required=True, help="a folder with *.zip, tasks/*.zip and the backbone")
    parser.add_argument("--work", type=Path, required=True, help="where sets are prepared")
    parser.add_argument("--tasks", nargs="*", help="names of tasks; all where none is named")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--flipped", nargs="*", type=float, default=[FLIPPED], help="shares of the training labels")
    parser.add_argument("--size", type=int, default=SIZE, help="as inspect.size, pixels")
    parser.add_argument("--write", action="store_true", help="add the rows to benchmarks/results/planted_faults.json")
    options = parser.parse_args()
    real, work = options.real.resolve(), options.work.resolve()
    for name in options.tasks or task_names(real):
        photos = describe(prepare(name, real, work), options.size)
        clean = scores(photos, photos.labels)
        for share in options.flipped:
            row = summarize([{"clean": clean, **measure(photos, share, seed)} for seed in range(options.seeds)])
            row = {"training": len(photos.labels), "test": len(photos.test), "views": len(photos.views), **row}
            print(name, share, json.dumps(row), flush=True)
            if options.write:
                record(f"{options.size} px, {share} flipped", name, row)


def describe(task: Task, size: int) -> Photos:
    with working_in(task.folder):
        path = artifacts.inspected_features(size, CROP)
        if not path.exists():
            larger = enlarged(task.transform, size)
            extract = extractor(ARCHITECTURE, task.source, larger, CPU)
            save_features(path, both_ways(extract, task.train, larger))
        train, inspected = (load_file(file) for file in (feature_files()[0], path))
        return Photos(
            views_of(train),
            inspected["crop"],
            inspected["mirror"],
            np.array(task.train.labels),
            [entry.sha256 for entry in load_manifest(artifacts.MANIFEST).train],
            load_file(feature_files()[1])["crop"],
            task.test_labels,
        )


def record(section: str, name: str, row: Row) -> None:
    results = read_json(RESULT) if RESULT.exists() else {}
    worth = results.get("worth", {})
    write_json(RESULT, {**results, "worth": {**worth, section: {**worth.get(section, {}), name: row}}})


def measure(photos: Photos, share: float, seed: int) -> Row:
    """One flipping: what the list has of it, and the scores of each arm but `clean`."""
    generator, true = np.random.default_rng(seed), photos.labels
    flipped = generator.choice(len(true), max(1, round(share * len(true))), replace=False)
    given = true.copy()
    given[flipped] = (true[flipped] + generator.integers(1, photos.num_classes, len(flipped))) % photos.num_classes

    proposed = propose(photos, given)
    fixed, reviewed = given.copy(), given.copy()
    for row, label in proposed.items():
        fixed[row], reviewed[row] = label, true[row]
    again = reviewed.copy()
    for row in propose(photos, reviewed):
        again[row] = true[row]
    arms = {"faulty": given, "fixed": fixed, "reviewed": reviewed, "again": again}
    return {
        "flips": len(flipped),
        "flags": len(proposed),
        "flips_found": len(set(flipped.tolist()) & proposed.keys()),
        **{arm: scores(photos, labels) for arm, labels in arms.items()},
    }


def propose(photos: Photos, labels: np.ndarray) -> dict[int, int]:
    """Training row -> the label that the fix list would give it."""
    folds = photos.deal_folds(labels)
    probabilities = out_of_fold_probabilities(photos.crop, photos.mirror, labels, folds, photos.num_classes)
    return {issue.row: issue.proposed for issue in find_wrong_labels(probabilities, labels, np.arange(len(labels)))}


def scores(photos: Photos, labels: np.ndarray) -> tuple[float, float]:
    """Test accuracy and log-loss of a calibrated probe on frozen features (the recipe `head: probe, epochs: 0`)."""
    probe = fit_probe(photos.views, labels, photos.deal_folds(labels), photos.num_classes, balanced=True)
    logits = probe.head.logits(photos.test)
    accuracy = float((logits.argmax(axis=1) == photos.test_labels).mean())
    return accuracy, log_loss(logits / probe.temperature, photos.test_labels)


def summarize(runs: list[Row]) -> Row:
    """Means over the seeds, and of the paired differences to `clean` and `faulty` their standard errors."""
    row: Row = {"seeds": len(runs)}
    row |= {"recall": share_of(runs, "flips_found", "flips"), "precision": share_of(runs, "flips_found", "flags")}
    for number, (score, better) in enumerate((("accuracy", 1), ("log_loss", -1))):
        values = {arm: better * np.array([run[arm][number] for run in runs]) for arm in ARMS}
        cost = values["clean"] - values["faulty"]
        gains = {arm: values[arm] - values["faulty"] for arm in ARMS[2:]}
        row[score] = {
            **{arm: round(float(better * values[arm].mean()), 4) for arm in ARMS},
            "cost": mean_and_error(cost),
            **{f"gain_{arm}": mean_and_error(gain) for arm, gain in gains.items()},
            **{f"regained_{arm}": regained(gain, cost) for arm, gain in gains.items()},
        }
    return row


def share_of(runs: Iterable[Row], part: str, whole: str) -> float | None:
    parts, wholes = (sum(run[key] for run in runs) for key in (part, whole))
    return round(parts / wholes, 3) if wholes else None


def mean_and_error(values: np.ndarray) -> list[float]:
    """The mean and its standard error."""
    return [round(float(values.mean()), 4), round(float(values.std(ddof=1) / len(values) ** 0.5), 4)]


def regained(gain: np.ndarray, cost: np.ndarray) -> list[float] | None:
    """Mean gain over mean cost with its 95 % interval, by resampling the seeds; null where the cost is not beyond chance."""
    mean, error = mean_and_error(cost)
    if mean <= 2 * error:
        return None
    drawn = np.random.default_rng(0).integers(len(cost), size=(2000, len(cost)))
    shares = gain[drawn].mean(axis=1) / cost[drawn].mean(axis=1)
    return [round(float(share), 2) for share in (gain.mean() / cost.mean(), *np.quantile(shares, [0.025, 0.975]))]


if __name__ == "__main__":
    main()
