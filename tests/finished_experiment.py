"""An experiment's files up to evaluate, written by the stages' own writers from drawn logits: no training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.evaluate.measure import measure
from stages.evaluate.scores import predictions_from
from stages.evaluate.tables import write_curves, write_predictions
from stages.shared import artifacts
from stages.shared.checkpoint import Facts, save_checkpoint
from stages.shared.dataset import (
    Manifest,
    TestFile,
    load_test_files,
    save_labels_before_fixes,
    save_manifest,
    save_test_files,
)
from stages.shared.files import write_json, write_text
from stages.shared.metrics import softmax
from stages.shared.model import build_model
from stages.shared.transforms import Transform
from tests.experiment import write_params

TRANSFORM = Transform(32, 32, (0.5,) * 3, (0.5,) * 3)


def write_split(class_names: Sequence[str], num_images: int, *, file_name: str = "{:03}.png") -> np.ndarray:
    """A test split of coloured squares and its manifest; returns the labels (N,)."""
    labels = np.arange(num_images, dtype=np.int64) % len(class_names)
    pixels = np.random.default_rng(9).integers(0, 256, (num_images, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    (artifacts.TEST_SPLIT / "images").mkdir(parents=True)
    np.save(artifacts.TEST_SPLIT / "images/pixels.npy", pixels)
    np.save(artifacts.TEST_SPLIT / "labels.npy", labels)
    save_labels_before_fixes(artifacts.TEST_SPLIT, labels)
    files = [TestFile(f"test/{class_names[label]}/{file_name.format(i)}", "0" * 64) for i, label in enumerate(labels)]
    save_test_files(artifacts.TEST_SPLIT, files)
    facts = {"digest": "d" * 64, "transform": TRANSFORM, "max_side": 32, "side": 32}
    save_manifest(artifacts.MANIFEST, Manifest(class_names=tuple(class_names), train=(), **facts))
    return labels


def write_run(recipe: str, class_names: Sequence[str], labels: np.ndarray, *, skill: float, epochs: int = 3) -> None:
    """What train and evaluate leave of one recipe; logits lean towards the label by `skill`."""
    generator = np.random.default_rng(len(recipe))
    logits = generator.normal(size=(len(labels), len(class_names))) + skill * np.eye(len(class_names))[labels]
    trained = {
        "recipe": recipe,
        "train_loss": 0.9 / skill,
        "train_accuracy": 0.7,
        "examples_per_second": 50.0,
        "seconds": 12.0,
    }
    write_json(artifacts.train_dir(recipe) / "metrics.json", {**trained, "device": "cpu", "precision": "float32"})
    rows = [f"{epoch},{0.9 / skill + 1 / epoch},{0.7 - 0.2 / epoch},50.0,4.0" for epoch in range(1, epochs + 1)]
    header = "epoch,train_loss,train_accuracy,examples_per_second,seconds"
    write_text(artifacts.train_dir(recipe) / "history.csv", "\n".join([header, *rows]) + "\n")
    write_evaluation(recipe, class_names, labels, logits)
    torch.manual_seed(0)
    model = build_model("squeezenet1_1", len(class_names), 32)
    facts = Facts("squeezenet1_1", tuple(class_names), TRANSFORM, recipe, 0, None, "d" * 64)
    save_checkpoint(artifacts.train_dir(recipe) / "checkpoint.safetensors", model, facts)


def write_evaluation(recipe: str, class_names: Sequence[str], labels: np.ndarray, logits: np.ndarray) -> None:
    folder, predictions = artifacts.evaluate_dir(recipe), predictions_from(logits, labels)
    metrics = measure(predictions, class_names, bins=15, samples=100, seed=0)
    write_json(folder / "metrics.json", {"recipe": recipe, **metrics, "device": "cpu"})
    paths = [file.path for file in load_test_files(artifacts.TEST_SPLIT)]
    write_predictions(folder, predictions, softmax(logits), class_names, paths)
    write_curves(folder, predictions, bins=15)


def write_experiment(class_names: Sequence[str] = ("hotdog", "not-hotdog"), num_images: int = 40) -> None:
    """The default experiment in the working folder: params.yaml, a split, and both recipes."""
    write_params(Path(), {})
    labels = write_split(class_names, num_images)
    write_run("finetune", class_names, labels, skill=2.5)
    write_run("scratch", class_names, labels, skill=1.2)
    write_export(class_names)


def write_export(class_names: Sequence[str]) -> None:
    """What the report reads of an export: export.json."""
    facts = {"architecture": "resnet18", "class_names": class_names, "recipe": "finetune", "seed": 0}
    weights = {"source": None, "init": "random"}
    content = {
        "facts": {**facts, "transform": {"resize": 32, "crop": 32}, "data_digest": "d" * 64},
        "data": {"source": None},
        "weights": weights,
        "variants": [],
        "metadata": {"thresholds": '{"familiarity": 0.01}'},
        "machine": "cpu (a processor)",
    }
    write_json(artifacts.EXPORT / "export.json", content)
