"""Compare ways to tell unfamiliar pictures from familiar ones, and time the shipped one.

    python -m benchmarks.familiarity TASK --real DIR --work DIR [--near TASK …] [--write]

Each way scores the test split of TASK (see benchmarks.quality) against pictures of other kinds: far ones drawn here (noise, coloured
blobs, text, drawings), near ones from other tasks' test splits. The features are the last ones of three networks: two as they came,
and one after the recipe `tuned`. A task's rows are replaced in results/familiarity.json by --write.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.quality.ours import train_ours
from benchmarks.quality.tasks import ARCHITECTURE, CROP, Task, prepare
from stages.export.familiarity import familiarity_graph, fit_gaussians, held_out_scores, unit_length
from stages.shared.dataset import fixed_crops
from stages.shared.files import read_json, write_json
from stages.shared.frozen_features import extract_features, load_network
from stages.shared.model import head_module, head_parameters
from stages.shared.reproducibility import describe_machine
from stages.shared.shipped_files import FEATURES
from stages.shared.transforms import resize_center_crop
from synthetic_images import SOURCE_CLASSES, draw_source

RESULT = Path(__file__).parent / "results" / "familiarity.json"
RESNET = "resnet18-food100.pth"
NUM_OTHERS = 100  # pictures of each kind
NEIGHBOURS = 5
CPU = torch.device("cpu")
Score = Callable[[np.ndarray], np.ndarray]  # features (n, d) -> how familiar (n,)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.familiarity", description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--near", nargs="+", default=[], help="other tasks")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    real, work = options.real.resolve(), options.work.resolve()
    task = prepare(options.task, real, work)
    others = far_pictures() | {
        name: prepare(name, real, work).test_pixels[:: max(1, len(prepare(name, real, work).test_pixels) // NUM_OTHERS)]
        for name in options.near
    }
    rows = {name: areas(*network, task, others) for name, network in networks(task, real)}
    print(json.dumps(rows, indent=1), flush=True)
    if options.write:
        results = read_json(RESULT) if RESULT.exists() else {}
        write_json(RESULT, results | about() | {options.task: rows})


def about() -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.familiarity",
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(CPU)["device"],
        "pixels": CROP,
        "what": "area under the ROC curve, the task's test split against each kind of other pictures",
        "milliseconds_an_image": {
            f"{size} features, 10 classes": round(milliseconds(size, 10), 3) for size in (512, 1280)
        },
    }


def networks(task: Task, real: Path) -> Iterator[tuple[str, tuple[nn.Module, nn.Module]]]:
    """Each network's name, and it with its head."""
    yield f"{ARCHITECTURE}, frozen", load_network(ARCHITECTURE, task.source, CROP)
    tuned, _ = train_ours("tuned", task, seed=0)
    tuned.requires_grad_(False)
    yield f"{ARCHITECTURE}, tuned", (tuned, head_module(tuned, head_parameters(ARCHITECTURE, CROP)))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file(torch.load(real / RESNET, weights_only=True), weights)
        yield "resnet18, frozen", load_network("resnet18", weights, CROP)


def areas(
    model: nn.Module, head: nn.Module, task: Task, others: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Way -> kind of other pictures -> area under the ROC curve."""

    def features(crops: np.ndarray) -> np.ndarray:
        (found,) = extract_features(
            model, head, [crops], len(crops), transform=task.transform, device=CPU, mirrored=(False,), name="pictures"
        )
        return found

    train = features(fixed_crops(task.train, range(len(task.train)), task.transform))
    known, unknown = features(task.test_pixels), {name: features(crops) for name, crops in others.items()}
    return {
        way: {name: round(area_under_roc(score, known, other), 3) for name, other in unknown.items()}
        for way, score in ways(train, np.asarray(task.train.labels)).items()
    }


def ways(train: np.ndarray, labels: np.ndarray) -> Mapping[str, Score]:
    """Each way's score by the training images' features (n, d) and labels (n,)."""
    head = LogisticRegression(C=10, max_iter=1000).fit(unit_length(train), labels)

    def logits(features: np.ndarray) -> np.ndarray:
        found = head.decision_function(unit_length(features))
        return np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found

    gaussians, unit = fit_gaussians(train, labels), unit_length(train)
    return {
        "largest softmax": lambda features: softmax(logits(features), axis=1).max(axis=1),
        "energy (log-sum-exp of the logits)": lambda features: logsumexp(logits(features), axis=1),
        "Mahalanobis, raw features": fit_raw_gaussians(train, labels),
        "Mahalanobis, unit length (shipped)": gaussians.scores,
        f"{NEIGHBOURS}th nearest neighbour, unit length": lambda features: np.sort(
            unit_length(features) @ unit.T, axis=1
        )[:, -NEIGHBOURS],
    }


def fit_raw_gaussians(train: np.ndarray, labels: np.ndarray) -> Score:
    means = np.stack([train[labels == label].mean(axis=0) for label in np.unique(labels)])
    rest = train - means[labels]
    covariance = rest.T @ rest / len(rest)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T

    def score(features: np.ndarray) -> np.ndarray:
        return -(((features @ whitening)[:, None] - means @ whitening) ** 2).sum(axis=2).min(axis=1)

    return score


def area_under_roc(score: Score, known: np.ndarray, other: np.ndarray) -> float:
    truth = np.r_[np.ones(len(known)), np.zeros(len(other))]
    return float(roc_auc_score(truth, np.r_[score(known), score(other)]))


def milliseconds(num_features: int, num_classes: int, runs: int = 500) -> float:
    """Median time of the familiarity graph alone, for one image, on one thread."""
    generator = np.random.default_rng(0)
    train, labels = generator.normal(size=(600, num_features)).astype(np.float32), np.arange(600) % num_classes
    scores = held_out_scores(train, labels, np.arange(600) % 5)
    graph = familiarity_graph(fit_gaussians(train, labels), scores, 18)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, {FEATURES: train[:1]})
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def far_pictures() -> dict[str, np.ndarray]:
    """Kind -> crops uint8 (NUM_OTHERS, CROP, CROP, 3)."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (NUM_OTHERS, CROP, CROP, 3), dtype=np.uint8)
    coarse = generator.integers(0, 256, (NUM_OTHERS, 6, 6, 3), dtype=np.uint8)
    blobs = np.stack(
        [np.asarray(Image.fromarray(few).resize((CROP, CROP), Image.Resampling.BICUBIC)) for few in coarse]
    )
    drawn = [
        resize_center_crop(draw_source(SOURCE_CLASSES[row % len(SOURCE_CLASSES)], row, 0, 128), CROP, CROP)
        for row in range(NUM_OTHERS)
    ]
    return {"noise": noise, "blobs": blobs, "text": draw_text(generator), "drawings": np.stack(drawn)}


def draw_text(generator: np.random.Generator) -> np.ndarray:
    pages = []
    for _ in range(NUM_OTHERS):
        page = Image.new("RGB", (CROP, CROP), "white")
        for top in range(4, CROP - 10, 12):
            letters = generator.choice(list("abcdefghijklmnopqrstuvwxyz    "), 18)
            ImageDraw.Draw(page).text((4, top), "".join(letters), fill="black")
        pages.append(np.asarray(page))
    return np.stack(pages)


if __name__ == "__main__":
    main()
