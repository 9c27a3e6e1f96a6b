"""Measure how many labels `predict.py --rank` saves against labelling at random, by simulation on labelled photos.

    python -m benchmarks.label_ranking --weights mobilenet_v2.pth task.zip [more.zip] [--seeds 5]

A task is a zip in the layout NAME/{train,test}/CLASS/*.jpg. The labels of its training split are hidden; a few at random are
opened, a logistic head is fitted on the frozen network's features, and the rest is ranked by it, 5 % at a time.
"""

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from consumers import predict_rank
from stages.shared.model import build_model

RESULT = Path(__file__).parent / "results" / "label_ranking.json"
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
RESIZE, CROP = 128, 112
FRACTIONS = (0.3, 0.5, 0.7, 1.0)  # of the labels, that random labelling is given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, required=True, help="state_dict of torchvision's mobilenet_v2")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    model = build_model("mobilenet_v2", 1000, CROP).eval()
    model.load_state_dict(torch.load(options.weights, weights_only=True))
    results = {}
    for path in options.tasks:
        splits = {split: load(path, split, model) for split in ("train", "test")}
        results[path.stem] = measure(splits["train"], splits["test"], options.seeds)
        print(path.stem, json.dumps(results[path.stem]), flush=True)
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


def load(path: Path, split: str, model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) float32 and labels (n,)."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if f"/{split}/" in name and name.endswith(".jpg"))
        classes = sorted({name.split("/")[2] for name in names})
        images = [
            Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((RESIZE, RESIZE), 2) for name in names
        ]
    start = (RESIZE - CROP) // 2
    crops = np.stack([np.asarray(image)[start : start + CROP, start : start + CROP] for image in images])
    rows = []
    with torch.inference_mode():
        for batch in np.array_split(crops, len(crops) // 64 + 1):
            pixels = torch.from_numpy(((batch / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2))
            rows.append(model.features(pixels).mean((2, 3)).numpy())  # type: ignore[operator]
    return np.concatenate(rows), np.array([classes.index(name.split("/")[2]) for name in names])


def measure(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], num_seeds: int
) -> dict[str, object]:
    """Mean test accuracy by labels, and the share of random's labels that ranked labelling needs for random's accuracy."""
    curves = {kind: [curve(kind, train, test, seed) for seed in range(num_seeds)] for kind in ("random", "ranked")}
    counts = [count for count, _ in curves["random"][0]]
    means = {kind: np.mean([[accuracy for _, accuracy in row] for row in rows], 0) for kind, rows in curves.items()}
    share = {}
    for fraction in FRACTIONS:
        given = int(np.argmin(np.abs(np.array(counts) - fraction * counts[-1])))
        reached = np.flatnonzero(means["ranked"] >= means["random"][given])
        share[str(fraction)] = round(counts[reached[0]] / counts[given], 2) if len(reached) else None
    accuracies = {kind: [round(float(value), 3) for value in mean] for kind, mean in means.items()}
    return {"seeds": num_seeds, "labels": counts, **accuracies, "share of labels at random's accuracy": share}


def curve(
    kind: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], seed: int
) -> list[tuple[int, float]]:
    """Labels opened and test accuracy, from a few to all; both kinds open the same four of each class first."""
    features, labels = train
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    opened = [index for name in np.unique(labels) for index in shuffled[labels[shuffled] == name][:4]]
    points = []
    while True:
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=300))
        known = np.array(opened)
        head.fit(features[known], labels[known])
        points.append((len(opened), float((head.predict(test[0]) == test[1]).mean())))
        if len(opened) == len(labels):
            return points
        left = shuffled[~np.isin(shuffled, known)]  # in random order
        if kind == "ranked":
            left = left[list(predict_rank.order(list(head.predict_proba(features[left])), list(features[left])))]
        opened += list(left[: max(1, len(labels) // 20)])


if __name__ == "__main__":
    main()
