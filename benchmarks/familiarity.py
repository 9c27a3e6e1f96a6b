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
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto
from safetensors.torch import save_file
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.far_pictures import draw_far
from benchmarks.quality.ours import train_ours
from benchmarks.quality.tasks import ARCHITECTURE, CROP, Task, prepare
from stages.export.core import export_core
from stages.export.deploy import chain
from stages.export.familiarity import familiarity_graph, fit_familiarity, fit_gaussians, unit_length
from stages.export.variants import in_batches, run_core
from stages.shared.contrasts import WithContrasts
from stages.shared.dataset import fixed_crops
from stages.shared.files import read_json, write_json
from stages.shared.frozen_features import flatten, load_network
from stages.shared.model import build_model, head_module, head_parameters
from stages.shared.reproducibility import describe_machine
from stages.shared.shipped_files import CONTRASTS, FAMILIARITY, FEATURES, LOGITS, NORMALIZED
from stages.shared.transforms import network_input

RESULT = Path(__file__).parent / "results" / "familiarity.json"
RESNET = "resnet18-food100.pth"
NUM_OTHERS = 100  # pictures of each kind
NEIGHBOURS = 5
BATCH = 32
CPU = torch.device("cpu")
Score = Callable[["Views"], np.ndarray]  # -> how familiar (n,)


class Views(NamedTuple):
    """Pictures as a network describes them."""

    features: np.ndarray  # (n, d): the input of its last layer
    contrasts: np.ndarray  # (n, e): of its early maps


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
    others = draw_far(NUM_OTHERS, CROP) | {
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
            "added to a ResNet-18 of 224 px": round(added_milliseconds(), 2),
            "the graph of it, 1280 features, 432 contrasts": round(milliseconds(1280, 432, 10), 2),
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

    train = describe(model, head, fixed_crops(task.train, range(len(task.train)), task.transform), task)
    known = describe(model, head, task.test_pixels[:], task)
    unknown = {name: describe(model, head, crops, task) for name, crops in others.items()}
    return {
        way: {name: round(area_under_roc(score, known, other), 3) for name, other in unknown.items()}
        for way, score in ways(train, np.asarray(task.train.labels)).items()
    }


@torch.inference_mode()
def describe(model: nn.Module, head: nn.Module, crops: np.ndarray, task: Task) -> Views:
    seen: list[np.ndarray] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(flatten(inputs[0]).numpy()))
    network = WithContrasts(model).eval()
    blocks = [crops[start : start + BATCH] for start in range(0, len(crops), BATCH)]
    contrasts = [network(torch.from_numpy(network_input(block, task.transform)))[1].numpy() for block in blocks]
    handle.remove()
    return Views(np.concatenate(seen), np.concatenate(contrasts))


def ways(train: Views, labels: np.ndarray) -> Mapping[str, Score]:
    """Each way's score by the training images' descriptions and labels (n,)."""
    unit = unit_length(train.features)
    head = LogisticRegression(C=10, max_iter=1000).fit(unit, labels)
    by_features, by_contrasts = fit_gaussians(unit, labels), fit_gaussians(train.contrasts, labels)
    shipped = fit_familiarity(*train, labels, np.arange(len(labels)) // 2 % 5)

    def logits(features: np.ndarray) -> np.ndarray:
        found = head.decision_function(unit_length(features))
        return np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found

    return {
        "largest softmax": lambda views: softmax(logits(views.features), axis=1).max(axis=1),
        "energy (log-sum-exp of the logits)": lambda views: logsumexp(logits(views.features), axis=1),
        "Mahalanobis, raw features": fit_raw_gaussians(train.features, labels),
        "Mahalanobis, features of unit length": lambda views: (
            -by_features.distances(unit_length(views.features)).min(1)
        ),
        "Mahalanobis, contrasts of early maps": lambda views: -by_contrasts.distances(views.contrasts).min(1),
        "the sum of the last two (shipped)": lambda views: shipped.scores(*views),
        f"{NEIGHBOURS}th nearest neighbour, unit length": lambda views: np.sort(
            unit_length(views.features) @ unit.T, axis=1
        )[:, -NEIGHBOURS],
    }


def fit_raw_gaussians(train: np.ndarray, labels: np.ndarray) -> Score:
    means = np.stack([train[labels == label].mean(axis=0) for label in np.unique(labels)])
    rest = train - means[labels]
    covariance = rest.T @ rest / len(rest)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T

    def score(views: Views) -> np.ndarray:
        return -(((views.features @ whitening)[:, None] - means @ whitening) ** 2).sum(axis=2).min(axis=1)

    return score


def area_under_roc(score: Score, known: Views, other: Views) -> float:
    truth = np.r_[np.ones(len(known.features)), np.zeros(len(other.features))]
    return float(roc_auc_score(truth, np.r_[score(known), score(other)]))


def milliseconds(num_features: int, num_contrasts: int, num_classes: int, runs: int = 500) -> float:
    """Median time of the familiarity graph alone, for one image, on one thread."""
    generator = np.random.default_rng(0)
    features, contrasts = (
        generator.normal(size=(600, size)).astype(np.float32) for size in (num_features, num_contrasts)
    )
    labels = np.arange(600) % num_classes
    graph = familiarity_graph(fit_familiarity(features, contrasts, labels, np.arange(600) % 7 % 5), 18)
    return median_milliseconds(graph, {FEATURES: features[:1], CONTRASTS: contrasts[:1]}, runs)


def added_milliseconds(runs: int = 60) -> float:
    """Milliseconds that contrasts and familiarity add to a ResNet-18's for one image of 224 px: both files in turns, medians."""
    torch.manual_seed(0)
    core = export_core(build_model("resnet18", 10, 224), 224, 18)
    image = {NORMALIZED: np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)}
    images = np.random.default_rng(1).normal(size=(40, 3, 224, 224)).astype(np.float32)
    features, contrasts = run_core(core, in_batches(images), FEATURES, CONTRASTS)
    graph = familiarity_graph(fit_familiarity(features, contrasts, np.arange(40) % 10, np.arange(40) // 10), 18)
    files = [chain([core, graph], [LOGITS, FAMILIARITY]), chain([core], [LOGITS])]
    seconds = [[median_milliseconds(file, image, runs // 6) for file in files] for _ in range(6)]
    return float(np.median([with_it - without for with_it, without in seconds]))


def median_milliseconds(model: ModelProto, inputs: Mapping[str, np.ndarray], runs: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seconds = []
    for _ in range(runs):
        start = time.thread_time()
        session.run(None, inputs)
        seconds.append(time.thread_time() - start)
    return 1000 * float(np.median(seconds))


if __name__ == "__main__":
    main()
