"""Train one recipe: python -m stages.train <recipe>.

Reads the training split and the source model's weights; writes checkpoint.safetensors, history.csv and metrics.json.
"""

import csv
import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stages.shared import artifacts, checkpoint
from stages.shared.checkpoint import Facts, digest, save_checkpoint
from stages.shared.cli import run
from stages.shared.dataset import Manifest, load_manifest, load_train_split
from stages.shared.distributed import launch, launched, process_group, rank_and_world_size
from stages.shared.files import file_digest, replacing, write_json
from stages.shared.optimization import Optimization
from stages.shared.params import Params, Recipe, Runtime, class_rows, load_params
from stages.shared.reproducibility import Execution, choose_device, choose_precision, describe_machine
from stages.shared.sampling import Augmentation, Sampling, choose_fraction
from stages.shared.training import Epoch
from stages.train.model import Start, train_model


def main(name: str = "") -> None:
    params = load_params()
    recipe = choose_recipe(params, name)
    device = choose_device(params.runtime.device)
    if params.runtime.num_devices > 1 and not launched():
        launch("stages.train", [name], params.runtime.num_devices, device)
        return
    with process_group(device) as device:
        train(params, name, recipe, device)


def train(params: Params, name: str, recipe: Recipe, device: torch.device) -> None:
    split, manifest = load_train_split(artifacts.TRAIN_SPLIT), load_manifest(artifacts.MANIFEST)
    start, facts = choose_start(params, recipe), make_facts(params, name, recipe, manifest)
    labels = torch.from_numpy(np.array(split.labels))
    chosen = choose_fraction(labels, recipe.train_fraction, facts.seed)
    sampling = Sampling(chosen, facts.seed, recipe.epochs, recipe.batch_size, choose_augmentation(recipe))
    optimization = choose_optimization(recipe, labels[chosen], len(facts.class_names))
    execution = Execution(
        device, choose_precision(recipe.precision, device), params.runtime.step, params.runtime.save_every
    )
    machine = {"precision": str(execution.precision).removeprefix("torch."), **describe_machine(device)}
    print(f"{name}: {facts.architecture} on {machine['device']}, {machine['precision']}", flush=True)

    resume_path = artifacts.CACHE / "train" / name / f"{fingerprint(recipe, facts, params.runtime, machine)}.pt"
    model, history = train_model(split, facts, start, sampling, optimization, execution, resume_path)
    if rank_and_world_size()[0] == 0:
        write_outputs(artifacts.train_dir(name), model, facts, history, machine)
        resume_path.unlink(missing_ok=True)


def choose_recipe(params: Params, name: str) -> Recipe:
    if name not in params.train:
        raise ValueError(
            f"params.yaml has no recipe {name!r} under train; run python -m stages.train with one of {', '.join(params.train)}"
        )
    return params.train[name]


def choose_start(params: Params, recipe: Recipe) -> Start:
    return Start(
        source=artifacts.source_weights(params.model.weights) if recipe.init == "pretrained" else None,
        head_rows=class_rows(recipe.head) if isinstance(recipe.head, list) else {},
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
    )


def choose_augmentation(recipe: Recipe) -> Augmentation | None:
    return None if recipe.augmentation == "none" else Augmentation(recipe.crop_scale, recipe.color, recipe.mixup)


def choose_optimization(recipe: Recipe, labels: torch.Tensor, num_classes: int) -> Optimization:
    """How the recipe updates weights; its class weights are those of `labels` (n,)."""
    own = {field.name for field in fields(Optimization)} - {"class_weights"}
    weights = balanced_weights(labels, num_classes) if recipe.class_weights == "balanced" else None
    return Optimization(**{name: getattr(recipe, name) for name in own}, class_weights=weights)


def balanced_weights(labels: torch.Tensor, num_classes: int) -> tuple[float, ...]:
    """A weight for each class, with which all classes count alike and an image 1 on average; 0 for one without images."""
    counts = torch.bincount(labels, minlength=num_classes)
    present = int((counts > 0).sum())
    return tuple(len(labels) / (present * count) if count else 0.0 for count in counts.tolist())


def fingerprint(recipe: Recipe, facts: Facts, runtime: Runtime, machine: Mapping[str, str]) -> str:
    """Names the resume file: a run goes on from it only where all that shapes its arithmetic is the same, the code too."""
    code = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(checkpoint.__file__).parent):
        for path in sorted(folder.glob("*.py")):
            code.update(path.read_bytes())
    everything = [recipe.model_dump(), asdict(facts), runtime.model_dump(), dict(machine), code.hexdigest()]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def write_outputs(
    folder: Path, model: nn.Module, facts: Facts, history: list[Epoch], ran_on: Mapping[str, str]
) -> None:
    save_checkpoint(folder / "checkpoint.safetensors", model, facts)
    rows = [asdict(epoch) for epoch in history]
    with replacing(folder / "history.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    # The first epoch also compiles and captures on CUDA, which would hide how fast a step is in a short run.
    rate = statistics.median(epoch.examples_per_second for epoch in history)
    metrics = {
        "recipe": facts.recipe,
        "train_loss": history[-1].train_loss,
        "train_accuracy": history[-1].train_accuracy,
        "examples_per_second": rate,
        "seconds": sum(epoch.seconds for epoch in history),
        "epochs": len(history),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "weights_digest": digest(model),
        **ran_on,
    }
    write_json(folder / "metrics.json", metrics)


if __name__ == "__main__":
    run(main)
