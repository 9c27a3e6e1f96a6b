"""Measure how often a threshold's promise holds on new photos: `min_precision`, as the export stage sets it.

    python -m benchmarks.promises --real DIR --work DIR --tasks hotdog-small … [--demanded 0.9] [--resamples 200] [--write]

DIR as for benchmarks.quality. Half of a task's images, drawn anew each time, train a probe; thresholds for every class come from its
out-of-fold logits, and the other half, which it has not seen, says how often the answers above them are right. `kept` is the share of
the resamples in which at least the demanded share of these answers was, and `not_contradicted` that in which a binomial test at 5 %
does not say otherwise: the new photos are few, so their own chance is in `kept`. Resamples of one pool are not independent:
where the training half has the easier photos, the other has the harder ones.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file
from scipy import stats

from benchmarks.quality.tasks import ARCHITECTURE, CROP, Task, feature_files, prepare, working_in
from stages.export.decisions import CONFIDENCE, NEVER, probability_thresholds
from stages.inspect.folds import assign_folds
from stages.shared.files import read_json, write_json
from stages.shared.frozen_features import extract_features, load_network
from stages.shared.metrics import softmax
from stages.shared.probe import fit_probe

RESULT = Path(__file__).parent / "results" / "promises.json"
TARGET = 0.95  # of the resamples


class Pool(NamedTuple):
    crop: np.ndarray  # (n, d) features of all images of a task
    mirror: np.ndarray  # (n, d) of the images mirrored
    labels: np.ndarray  # (n,)
    class_names: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promises", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--demanded", type=float, default=0.9)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for name in options.tasks:
        pool = describe(prepare(name, options.real.resolve(), options.work.resolve()))
        found = [resample(pool, options.demanded, seed) for seed in range(options.resamples)]
        rows = summarize(found, pool.class_names, options.demanded)
        print(name, json.dumps(rows), flush=True)
        if options.write:
            results = read_json(RESULT) if RESULT.exists() else {}
            about = {"command": "python -m benchmarks.promises", "date": time.strftime("%Y-%m-%d"), "target": TARGET}
            write_json(RESULT, results | about | {f"{name}, {options.demanded} demanded": rows})


def describe(task: Task) -> Pool:
    with working_in(task.folder):
        train, test = (load_file(path) for path in feature_files())
    model, head = load_network(ARCHITECTURE, task.source, CROP)
    (mirror,) = extract_features(
        model, head, [task.test_pixels[:]], len(task.test_pixels),
        transform=task.transform, device=torch.device("cpu"), mirrored=(True,), name="mirrored test",
    )  # fmt: skip
    return Pool(
        np.concatenate([train["crop"], test["crop"]]),
        np.concatenate([train["mirror"], mirror]),
        np.concatenate([task.train.labels, task.test_labels]),
        task.class_names,
    )


def resample(pool: Pool, demanded: float, seed: int) -> list[tuple[int, int] | None]:
    """For each class how many of the new photos' answers above its threshold are right, and of how many; None where it is NEVER."""
    order = np.random.default_rng(seed).permutation(len(pool.labels))
    train, new = np.split(order, [len(order) // 2])
    labels, num_classes = pool.labels[train], len(pool.class_names)
    folds = assign_folds(labels, [f"{row:06}" for row in train], np.arange(len(train)), ())
    probe = fit_probe([pool.crop[train], pool.mirror[train]], labels, folds, num_classes, balanced=True)
    thresholds = probability_thresholds(
        probe.logits / probe.temperature, labels, pool.class_names, dict.fromkeys(pool.class_names, demanded)
    )
    logits = probe.head.logits(pool.crop[new]) / probe.temperature
    confidence, answer = softmax(logits).max(axis=1), logits.argmax(axis=1)
    found: list[tuple[int, int] | None] = []
    for label, name in enumerate(pool.class_names):
        answered = (answer == label) & (confidence >= thresholds[name])
        right = int((pool.labels[new][answered] == label).sum())
        found.append(None if thresholds[name] == NEVER else (right, int(answered.sum())))
    return found


def summarize(
    found: Sequence[Sequence[tuple[int, int] | None]], class_names: Sequence[str], demanded: float
) -> dict[str, Any]:
    """By class, over the resamples with a threshold that something passed."""
    rows = {}
    for name, counts in zip(class_names, zip(*found, strict=True), strict=True):
        passed = np.array([count for count in counts if count and count[1]]).reshape(-1, 2)
        right, answers = passed.T
        rows[name] = {
            "resamples": len(counts),
            "with_answers": len(passed),
            "answers": round(float(answers.mean()), 1) if len(passed) else None,
            "precision": round(float(right.sum() / answers.sum()), 4) if len(passed) else None,
            "kept": share(right >= demanded * answers),
            "not_contradicted": share(stats.binom.cdf(right, answers, demanded) > 1 - CONFIDENCE),
        }
    return rows


def share(kept: np.ndarray) -> float | None:
    return round(float(kept.mean()), 3) if len(kept) else None


if __name__ == "__main__":
    main()
