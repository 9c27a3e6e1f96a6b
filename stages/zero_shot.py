"""Measure how well the source model alone tells the target's classes apart: python -m stages.zero_shot.

`zero_shot: [hotdog@934]` says which of the source model's classes means which target class; the one target class that is
not named stands for all its other classes together. Nothing is trained. Where `zero_shot` is empty there is nothing to
measure, and metrics.json says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from torch import nn

from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.dataset import TrainSplit, chunks_of_crops, load_manifest, load_test_split, load_train_split
from stages.shared.files import write_json
from stages.shared.inference import predict_logits
from stages.shared.metrics import wilson_interval
from stages.shared.model import build_model, head_parameters, load_source
from stages.shared.params import class_rows, load_params
from stages.shared.reproducibility import choose_device, describe_machine
from stages.shared.transforms import Transform


def main() -> None:
    params = load_params()
    if not params.zero_shot:
        write_json(artifacts.ZERO_SHOT, {"measured": False, "reason": "zero_shot names no class of the source model"})
        return
    manifest, split = load_manifest(artifacts.MANIFEST), load_test_split(artifacts.TEST_SPLIT)
    model, num_classes = load_source_model(
        params.model.architecture, manifest.transform.crop, artifacts.source_weights(params.model.weights)
    )
    sources = choose_sources(class_rows(params.zero_shot), manifest.class_names, num_classes)
    device = choose_device(params.runtime.device)
    logits = predict_logits(model, split.pixels, manifest.transform, device=device)
    metrics = measure(logits, np.asarray(split.labels), sources)
    metrics |= validate(model, load_train_split(artifacts.TRAIN_SPLIT), manifest.transform, sources, device)
    write_json(artifacts.ZERO_SHOT, {"measured": True, **metrics, "device": describe_machine(device)["device"]})
    print(
        f"zero-shot: top-1 {metrics['test_accuracy']:.3f}, ROC-AUC {metrics['roc_auc']} on {len(split.labels)} images"
    )


def load_source_model(architecture: str, crop: int, weights: Path) -> tuple[nn.Module, int]:
    """The source model with its own head, and how many classes that has."""
    state = load_file(weights)
    num_classes = len(state[head_parameters(architecture, crop)[0]])
    model = build_model(architecture, num_classes, crop)
    load_source(model, architecture, crop, state, {row: row for row in range(num_classes)})
    return model, num_classes


def choose_sources(named: Mapping[str, int], class_names: Sequence[str], num_classes: int) -> list[np.ndarray]:
    """For each target class the source classes that stand for it, (n,) int64. Raises ValueError naming the key."""
    if unknown := set(named) - set(class_names):
        raise ValueError(
            f"zero_shot names {', '.join(sorted(unknown))}; the data's classes are {', '.join(class_names)}"
        )
    if too_large := {name: row for name, row in named.items() if row >= num_classes}:
        raise ValueError(f"zero_shot names the source classes {too_large}; the source model has {num_classes}")
    if len(unnamed := set(class_names) - set(named)) > 1:
        raise ValueError(f"zero_shot leaves {', '.join(sorted(unnamed))} unnamed; name all of the classes but one")
    others = np.setdiff1d(np.arange(num_classes), list(named.values()))
    return [np.array([named[name]]) if name in named else others for name in class_names]


def validate(
    model: nn.Module, split: TrainSplit, transform: Transform, sources: Sequence[np.ndarray], device: torch.device
) -> dict[str, float]:
    """validation_accuracy with its interval and validation_loss: nothing was trained, so every training image is held out."""
    chunks = chunks_of_crops(split, range(len(split)), transform)
    logits = np.concatenate([predict_logits(model, crops, transform, device=device) for crops in chunks])
    scores = measure(logits, np.asarray(split.labels), sources)
    keys = ("accuracy", "accuracy_low", "accuracy_high", "loss")
    return {f"validation_{key}": scores[f"test_{key}"] for key in keys}


def measure(logits: np.ndarray, labels: np.ndarray, sources: Sequence[np.ndarray]) -> dict[str, Any]:
    """Scores of source logits (N, source classes) for target labels (N,).

    test_accuracy: the target class of the model's top-1, of its first choice among all the source classes that stand for
    one. threshold_accuracy, test_loss, roc_auc: of probabilities, those of a target class's source classes added up.
    """
    logits = logits.astype(np.float64)
    best = np.stack([logits[:, rows].max(axis=1) for rows in sources], axis=1)  # (N, target classes)
    pooled = np.stack([logsumexp(logits[:, rows], axis=1) for rows in sources], axis=1)
    log_probabilities = pooled - logsumexp(pooled, axis=1, keepdims=True)
    correct = best.argmax(axis=1) == labels
    low, high = wilson_interval(int(correct.sum()), len(labels))
    binary = len(sources) == 2 and len(np.unique(labels)) == 2
    return {
        "num_images": len(labels),
        "test_loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "test_accuracy": float(correct.mean()),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "threshold_accuracy": float((pooled.argmax(axis=1) == labels).mean()),
        "recall": [float(correct[labels == k].mean()) if (labels == k).any() else None for k in range(len(sources))],
        "roc_auc": float(roc_auc_score(labels == 0, pooled[:, 0] - pooled[:, 1])) if binary else None,
    }


if __name__ == "__main__":
    run(main)
