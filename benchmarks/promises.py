"""Measure how often a threshold's promise holds on new pictures: `min_precision`, as the export stage sets it.

    python -m benchmarks.promises [--task hotdog-small --train 125 --real DIR --work DIR] [--demanded 0.9] [--resamples 200] [--write]

Without a task, on drawn logits: there the true precision above a threshold is known. With one (see benchmarks.quality), on its photos:
so many of them, drawn anew each time, train a probe whose out-of-fold logits give a threshold for every class, and the others are new.
How often the share of their answers that is right reaches what was demanded has these answers' own chance in it; `spread_by_chance` is the
standard deviation that chance alone gives that share, `spread` the one seen. Resamples of one pool are not independent of its rest: where
the training images got the easier photos, the new ones are the harder.
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
from scipy.special import logit

from benchmarks.quality.tasks import ARCHITECTURE, CROP, Task, feature_files, prepare, working_in
from stages.export.decisions import NEVER, lowest_threshold, probability_thresholds, surest_first
from stages.inspect.folds import assign_folds
from stages.shared.calibration import fit_temperature
from stages.shared.files import read_json, write_json
from stages.shared.frozen_features import extract_features, load_network
from stages.shared.metrics import softmax
from stages.shared.probe import fit_probe
from stages.shared.reproducibility import describe_machine

RESULT = Path(__file__).parent / "results" / "promises.json"
CPU = torch.device("cpu")
SKILLS, COUNTS, SPREAD = (0.75, 1.0, 1.5, 2.0), (125, 250, 1000), 1.5  # means of a margin, images, its deviation


class Pool(NamedTuple):
    crop: np.ndarray  # (n, d) features of all images of a task
    mirror: np.ndarray  # (n, d) of the images mirrored
    labels: np.ndarray  # (n,)
    class_names: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promises", description=__doc__.splitlines()[0])
    parser.add_argument("--task")
    parser.add_argument("--train", type=int, default=125, help="images that train")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--demanded", type=float, default=0.9)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.task:
        name = f"{options.task}, {options.train} to train, {options.demanded} demanded"
        pool = describe(prepare(options.task, options.real.resolve(), options.work.resolve()))
        found = [resample(pool, options.train, options.demanded, seed) for seed in range(options.resamples)]
        rows = summarize(found, pool.class_names, options.demanded)
    else:
        name = f"drawn logits, {options.demanded} demanded"
        rows = {
            f"{count} images, right in {accuracy(skill):.2f}": on_drawn(
                count, skill, options.demanded, options.resamples
            )
            for skill in SKILLS
            for count in COUNTS
        }
    print(name, json.dumps(rows, indent=1), flush=True)
    if options.write:
        results = read_json(RESULT) if RESULT.exists() else {}
        write_json(RESULT, results | about() | {name: rows})


def about() -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.promises",
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(CPU)["device"],
        "target": "broken, that is given and truly less precise than demanded: at most 0.05 of the resamples",
    }


def accuracy(skill: float) -> float:
    return float(stats.norm.cdf(skill / SPREAD))


def on_drawn(count: int, skill: float, demanded: float, resamples: int) -> dict[str, float]:
    """Shares of the resamples, of two classes alike whose margin is normal; the logits are overconfident before they are calibrated."""
    generator = np.random.default_rng(count)
    given, broken = 0, 0
    for _ in range(resamples):
        labels = generator.integers(0, 2, count)
        margin = generator.normal(skill, SPREAD, count) * np.where(labels == 0, 1, -1)
        logits = np.stack([margin, -margin], axis=1)
        temperature = fit_temperature(logits, labels)
        threshold = lowest_threshold(*surest_first(logits / temperature, labels, 0), demanded)
        if threshold != NEVER:
            least = max(logit(threshold) * temperature / 2, 0)
            right, wrong = stats.norm.sf([(least - skill) / SPREAD, (least + skill) / SPREAD])
            given, broken = given + 1, broken + int(right / (right + wrong) < demanded)
    return {"given": round(given / resamples, 4), "broken": round(broken / resamples, 4)}


def describe(task: Task) -> Pool:
    with working_in(task.folder):
        train, test = (load_file(path) for path in feature_files())
    model, head = load_network(ARCHITECTURE, task.source, CROP)
    (mirror,) = extract_features(
        model, head, [task.test_pixels[:]], len(task.test_pixels),
        transform=task.transform, device=CPU, mirrored=(True,), name="mirrored test",
    )  # fmt: skip
    return Pool(
        np.concatenate([train["crop"], test["crop"]]),
        np.concatenate([train["mirror"], mirror]),
        np.concatenate([task.train.labels, task.test_labels]),
        task.class_names,
    )


def resample(pool: Pool, num_train: int, demanded: float, seed: int) -> list[tuple[int, int] | None]:
    """For each class how many of the new photos' answers above its threshold are right, and of how many; None where it is NEVER."""
    train, new = np.split(np.random.default_rng(seed).permutation(len(pool.labels)), [num_train])
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
) -> dict[str, dict[str, float]]:
    """By class: the share of resamples with a threshold that something passed, and of these what the new photos say."""
    rows: dict[str, dict[str, float]] = {}
    for name, counts in zip(class_names, zip(*found, strict=True), strict=True):
        passed = np.array([count for count in counts if count and count[1]]).reshape(-1, 2)
        rows[name] = {"given": round(len(passed) / len(counts), 4)}
        if len(passed):
            right, answers = passed.T
            precision = right.sum() / answers.sum()
            numbers = {
                "answers": answers.mean(),
                "precision": precision,
                "reached": (right >= demanded * answers).mean(),
                "contradicted": (stats.binom.cdf(right, answers, demanded) <= 0.05).mean(),
                "spread": (right / answers).std(),
                "spread_by_chance": np.sqrt((precision * (1 - precision) / answers).mean()),
            }
            rows[name] |= {key: round(float(value), 4) for key, value in numbers.items()}
    return rows


if __name__ == "__main__":
    main()
