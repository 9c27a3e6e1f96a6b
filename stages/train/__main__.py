"""Train one recipe: python -m stages.train <recipe>.

Reads the training split, its folds, the source model's weights and its features. What the recipe is worth is measured on
held-out folds of the training images; then it is trained on all of them. Writes, in artifacts/train/<recipe>/:

checkpoint.safetensors   the weights, with the temperature in the head's, and the facts to rebuild the model
history.csv              the training, epoch by epoch; where the probe was no worse, the mean of the folds' trainings
validation.npz           what models said of images that they were not trained on (stages/shared/held_out.py)
metrics.json             result (retrained or probe), validation_accuracy and validation_loss with 95 % intervals, temperature, training's own numbers
"""

import csv
import hashlib
import json
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from stages.shared import artifacts, checkpoint
from stages.shared.checkpoint import Facts, digest, save_checkpoint
from stages.shared.cli import run
from stages.shared.dataset import Manifest, TrainSplit, load_manifest, load_train_split
from stages.shared.distributed import launch, launched, process_group, rank_and_world_size
from stages.shared.files import file_digest, replacing, write_json
from stages.shared.held_out import LEFT_OUT, load_folds, save_validation
from stages.shared.model import Mirrored, head_parameters, scale_logits
from stages.shared.optimization import Optimization
from stages.shared.params import Params, Recipe, Runtime, class_rows, load_params
from stages.shared.probe import Head, Probe, fit_probe, views_of
from stages.shared.reproducibility import Execution, choose_device, choose_precision, describe_machine
from stages.shared.sampling import Augmentation, Sampling, choose_fraction
from stages.shared.training import Epoch
from stages.train.cross_fit import Outcome, Plan, Training, cross_fit, merge_folds
from stages.train.model import Start, train_model
from stages.train.validation import measure


def main(name: str = "") -> None:
    params = load_params()
    recipe = choose_recipe(params, name)
    device = choose_device(params.runtime.device)
    num_devices, num_nodes = params.runtime.num_devices, params.runtime.num_nodes
    if num_devices * num_nodes > 1 and not launched():
        launch("stages.train", [name], num_devices, device, num_nodes)
        return
    with process_group(device) as device:
        train(params, name, recipe, device)


def train(params: Params, name: str, recipe: Recipe, device: torch.device) -> None:
    split = load_train_split(artifacts.TRAIN_SPLIT, memory=int(params.runtime.memory_gb * 1e9))
    manifest = load_manifest(artifacts.MANIFEST)
    start, facts = choose_start(params, recipe), make_facts(params, name, recipe, manifest)
    folds = choose_folds(split, recipe, facts.seed)
    probe = fit_head(split, folds, recipe, len(facts.class_names)) if recipe.head == "probe" else None
    execution = Execution(
        device, choose_precision(recipe.precision, device), params.runtime.step, params.runtime.save_every
    )
    machine = {"precision": str(execution.precision).removeprefix("torch."), **describe_machine(device)}
    print(f"{name}: {facts.architecture} on {machine['device']}, {machine['precision']}", flush=True)
    resume_dir = artifacts.CACHE / "train" / name / fingerprint(recipe, facts, folds, params.runtime, machine)

    def train_on(rows: np.ndarray, head: Head | None, epochs: int, what: str) -> Training:
        labels, part = torch.from_numpy(np.asarray(split.labels)[rows]), f"{name} {what}".strip()
        sampling = Sampling(torch.from_numpy(rows), facts.seed, epochs, recipe.batch_size, choose_augmentation(recipe))
        optimization = choose_optimization(recipe, labels, len(facts.class_names))
        resume_path = resume_dir / f"{part}.pt"
        model, history = train_model(
            split, facts, replace(start, head=head), sampling, optimization, execution, resume_path, part
        )
        return Mirrored(model) if recipe.mirror else model, history

    plan = choose_plan(recipe)
    outcome = cross_fit(train_on, split, folds, probe, plan, facts.transform, len(facts.class_names), device)
    # What is written is the network; whoever loads it reads `mirror` in its facts.
    if isinstance(outcome.model, Mirrored):
        outcome = replace(outcome, model=outcome.model.network)
    scale_logits(outcome.model, head_parameters(facts.architecture, facts.transform.crop), 1 / outcome.temperature)
    if rank_and_world_size()[0] == 0:
        write_outputs(artifacts.train_dir(name), facts, outcome, machine)
        shutil.rmtree(resume_dir.parent, ignore_errors=True)  # with what was left of runs of other settings


def choose_recipe(params: Params, name: str) -> Recipe:
    if name not in params.train:
        raise ValueError(
            f"params.yaml has no recipe {name!r} under train; run python -m stages.train with one of {', '.join(params.train)}"
        )
    return params.train[name]


def choose_start(params: Params, recipe: Recipe) -> Start:
    source = artifacts.source_weights(params.model.weights) if recipe.init == "pretrained" else None
    if source and not source.exists():
        before = "pretrain" if params.model.weights == "synthetic" else "download model"
        raise ValueError(f"{source}: no such file; run python -m stages.{before}, or dvc repro")
    return Start(
        source=source,
        head_rows=class_rows(recipe.head) if isinstance(recipe.head, list) else {},
        head=None,
        freeze=recipe.freeze,
        exact_batch_norm=params.runtime.batch_norm == "exact",
    )


def make_facts(params: Params, name: str, recipe: Recipe, manifest: Manifest) -> Facts:
    source = choose_start(params, recipe).source
    return Facts(
        architecture=params.model.architecture,
        class_names=manifest.class_names,
        transform=manifest.transform,
        recipe=name,
        seed=params.seed if recipe.seed is None else recipe.seed,
        source_digest=file_digest(source) if source else None,
        data_digest=manifest.digest,
        mirror=recipe.mirror,
    )


def choose_folds(split: TrainSplit, recipe: Recipe, seed: int) -> np.ndarray:
    """(N,) int64: the fold of each image that the recipe is trained on; -1 for the others."""
    folds = load_folds(artifacts.INSPECTION / "folds.npz", len(split))
    chosen = choose_fraction(torch.from_numpy(np.array(split.labels)), recipe.train_fraction, seed).numpy()
    return merge_folds(np.where(np.isin(np.arange(len(split)), chosen), folds, LEFT_OUT), recipe.num_folds)


def fit_head(split: TrainSplit, folds: np.ndarray, recipe: Recipe, num_classes: int) -> Probe:
    """The logistic head on the source network's features, and those fitted without each fold."""
    features, balanced = load_file(artifacts.FEATURES / "train.safetensors"), recipe.class_weights == "balanced"
    views, labels = views_of(features), np.asarray(split.labels)
    crop, mirror = views[:2]
    # A linear head's mean logits are its logits of the mean features.
    judged = (crop + mirror) / 2 if recipe.mirror else crop
    return fit_probe(views, labels, folds, num_classes, balanced=balanced, judged=judged)


def choose_plan(recipe: Recipe) -> Plan:
    return Plan(
        epochs=recipe.epochs,
        validation=recipe.validation,
        calibrated=recipe.calibration == "temperature",
        balanced=recipe.class_weights == "balanced",
    )


def choose_augmentation(recipe: Recipe) -> Augmentation | None:
    return None if recipe.augmentation == "none" else Augmentation(recipe.crop_scale, recipe.color, recipe.mixup)


def choose_optimization(recipe: Recipe, labels: torch.Tensor, num_classes: int) -> Optimization:
    """The recipe's way to update weights; its class weights are those of `labels` (n,)."""
    own = {field.name for field in fields(Optimization)} - {"class_weights"}
    weights = balance_classes(labels, num_classes) if recipe.class_weights == "balanced" else None
    return Optimization(**{name: getattr(recipe, name) for name in own}, class_weights=weights)


def balance_classes(labels: torch.Tensor, num_classes: int) -> tuple[float, ...]:
    """A weight for each class, with which all classes count alike and an image 1 on average; 0 for one without images."""
    counts = torch.bincount(labels, minlength=num_classes)
    present = int((counts > 0).sum())
    return tuple(len(labels) / (present * count) if count else 0.0 for count in counts.tolist())


def fingerprint(recipe: Recipe, facts: Facts, folds: np.ndarray, runtime: Runtime, machine: Mapping[str, str]) -> str:
    """Digest that names the resume folder: of everything that shapes the arithmetic, the code included."""
    code = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(checkpoint.__file__).parent):
        for path in sorted(folder.glob("*.py")):
            code.update(path.read_bytes())
    images = hashlib.sha256(folds.tobytes()).hexdigest()
    execution = runtime.model_dump(exclude={"save_every", "memory_gb"})
    everything = [recipe.model_dump(), asdict(facts), images, execution, dict(machine), code.hexdigest()]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def write_outputs(folder: Path, facts: Facts, outcome: Outcome, ran_on: Mapping[str, str]) -> None:
    save_validation(folder / "validation.npz", outcome.validation)
    save_checkpoint(folder / "checkpoint.safetensors", outcome.model, facts)
    write_history(folder / "history.csv", outcome.history)
    metrics = {
        "recipe": facts.recipe,
        "result": outcome.result,
        **training_metrics(outcome.model, outcome.history),
        **measure(outcome.validation),
        "validation_seconds": outcome.validation_seconds,
        "temperature": outcome.temperature,
        **ran_on,
    }
    write_json(folder / "metrics.json", metrics)


def write_history(path: Path, history: list[Epoch]) -> None:
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)


def training_metrics(model: nn.Module, history: list[Epoch]) -> dict[str, Any]:
    """The part of metrics.json that tells of the training itself; null where there was none, but for the probe."""
    parameters = list(model.parameters())
    last = history[-1] if history else None
    return {
        "train_loss": last.train_loss if last else None,
        "train_accuracy": last.train_accuracy if last else None,
        # The first epoch also compiles and captures on CUDA, which would hide how fast a step is in a short run.
        "examples_per_second": statistics.median(epoch.examples_per_second for epoch in history) if last else None,
        "seconds": sum(epoch.seconds for epoch in history),
        "epochs": len(history),
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "weights_digest": digest(model),
    }


if __name__ == "__main__":
    run(main)
