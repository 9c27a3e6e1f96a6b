"""Measure how often the nightly look at recent pictures raises an alarm: on the same source's pictures, and on planted shifts.

    python -m benchmarks.drift --real DIR --work DIR [--tasks …] [--nights 100] [--write]

A task's pictures (of both splits, see benchmarks.quality) are divided anew for each night: one half stands for the training images,
and 50 of the other for recent ones: as they are, with their pixels changed, of one class only, or half of them another task's.
A ridge head stands for the exported model, whose answers are compared too.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_predict

from benchmarks.quality.tasks import ARCHITECTURE, CROP, Task, prepare, task_names
from stages.monitor.compare import colours, unit_length
from stages.monitor.two_sample import LEVEL, compare_counts, compare_samples
from stages.shared.dataset import fixed_crops
from stages.shared.files import write_json
from stages.shared.frozen_features import extract_features, load_network
from stages.shared.reproducibility import describe_machine

RESULT = Path(__file__).parent / "results" / "drift.json"
MOST, RECENT = 400, 50  # pictures of a task, and of a night
SELDOM = 5  # of so many nights one is tried with every shift; a rare false alarm takes more nights to count
TARGETS = {"same": 0.05, "shifted": 0.9}  # at most, and at least
CPU = torch.device("cpu")
Change = Callable[[np.ndarray], np.ndarray]  # of a picture's pixels, uint8 (crop, crop, 3)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", help="two at least; all where none is named")
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    real, work = options.real.resolve(), options.work.resolve()
    names = options.tasks or task_names(real)
    pictures = {name: describe(prepare(name, real, work)) for name in names}
    tasks = {}
    for row, name in enumerate(names):
        (changed, labels), (others, _) = pictures[name], pictures[names[row - 1]]
        tasks[name] = alarms(changed, labels, others["same"], options.nights)
        print(name, json.dumps(tasks[name]), flush=True)
    if options.write:
        write_json(RESULT, about(options.nights) | {"tasks": tasks})


def about(nights: int) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.drift",
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(CPU)["device"],
        "network": f"{ARCHITECTURE} at {CROP} px, frozen",
        "what": f"share of nights with an alarm (p <= {LEVEL}), of {RECENT} recent pictures: {nights} nights of `same`, {-(-nights // SELDOM)} of others",
        "targets": TARGETS,
    }


class Views(NamedTuple):
    """Pictures as the monitor looks at them."""

    features: np.ndarray  # (n, d) of unit length
    colours: np.ndarray  # (n, 6)


def describe(task: Task) -> tuple[dict[str, Views], np.ndarray]:
    """Kind of change -> the changed pictures; and the labels (n,)."""
    crops = np.concatenate([fixed_crops(task.train, range(len(task.train)), task.transform), task.test_pixels[:]])
    labels = np.concatenate([task.train.labels, task.test_labels])
    rows = np.sort(np.random.default_rng(0).permutation(len(crops))[:MOST])
    model, head = load_network(ARCHITECTURE, task.source, CROP)

    def views(change: Change, name: str) -> Views:
        changed = np.stack([change(crops[row]) for row in rows])
        (found,) = extract_features(
            model, head, [changed], len(rows), transform=task.transform, device=CPU, mirrored=(False,), name=name
        )
        return Views(unit_length(found), colours(changed))

    return {name: views(change, name) for name, change in CHANGES.items()}, labels[rows]


def alarms(pictures: dict[str, Views], labels: np.ndarray, others: Views, nights: int) -> dict[str, float | int]:
    """Kind of recent pictures -> share of nights with an alarm."""
    raised: dict[str, list[bool]] = {}
    for night in range(nights):
        generator = np.random.default_rng(night)
        order = generator.permutation(len(labels))
        training, rest = np.split(order, [len(order) // 2])
        same = pictures["same"]
        recent = {name: take(changed, rest[:RECENT]) for name, changed in pictures.items()}
        recent["one class only"] = take(same, rest[labels[rest] == labels[rest[0]]][:RECENT])
        strange = take(others, generator.choice(len(others.features), RECENT // 2, replace=False))
        familiar = take(same, rest[: RECENT // 2])
        recent["half of them another task's"] = Views(*map(np.concatenate, zip(familiar, strange, strict=True)))
        watch = Watch(take(same, training), labels[training])
        for name, found in recent.items() if night % SELDOM == 0 else [("same", recent["same"])]:
            raised.setdefault(name, []).append(watch.p_value(found, night) <= LEVEL)
    shares: dict[str, float | int] = {name: round(float(np.mean(found)), 3) for name, found in raised.items()}
    return {"pictures": len(labels), **shares}


def take(views: Views, rows: np.ndarray) -> Views:
    return Views(views.features[rows], views.colours[rows])


class Watch:
    """The monitor's three tests against one night's training images, whose labels (n,) a ridge head is fitted to."""

    def __init__(self, training: Views, labels: np.ndarray) -> None:
        self.training, self.num_classes = training, int(labels.max()) + 1
        self.head = RidgeClassifier(alpha=0.3).fit(training.features, labels)
        self.held_out = self.counts(cross_val_predict(RidgeClassifier(alpha=0.3), training.features, labels, cv=6))

    def counts(self, answers: np.ndarray) -> np.ndarray:
        return np.bincount(answers, minlength=self.num_classes)

    def p_value(self, recent: Views, night: int) -> float:
        answers = self.counts(self.head.predict(recent.features))
        tests = [compare_samples(*pair, night).p_value for pair in zip(self.training, recent, strict=True)]
        tests.append(compare_counts(self.held_out, answers, night))
        return len(tests) * min(tests)


def by_pillow(change: Callable[[Image.Image], Image.Image]) -> Change:
    return lambda pixels: np.asarray(change(Image.fromarray(pixels)))


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=10)
    return Image.open(file).convert("RGB")


def scaled(channels: Sequence[float]) -> Change:
    return lambda pixels: (pixels * np.asarray(channels)).astype(np.uint8)


def noisy(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "same": lambda pixels: pixels,
    "half as light": scaled([0.5, 0.5, 0.5]),
    "tinted": scaled([1.0, 0.85, 0.6]),
    "blurred": by_pillow(lambda image: image.filter(ImageFilter.GaussianBlur(1.5))),
    "JPEG quality 10": by_pillow(recompressed),
    "noise": noisy,
    "closer": by_pillow(lambda image: image.crop((20, 20, CROP - 20, CROP - 20)).resize((CROP, CROP))),
}


if __name__ == "__main__":
    main()
