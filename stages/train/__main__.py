"""Train one recipe: python -m stages.train <recipe>.

Reads the training split and the source model's weights; writes checkpoint.safetensors, history.csv and metrics.json.
"""

import csv
import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from stages.shared import artifacts
from stages.shared.checkpoint import Facts, digest, save_checkpoint
from stages.shared.cli import run
from stages.shared.dataset import load_manifest, load_train_split
from stages.shared.distributed import launch, launched, process_group, rank_and_world_size, with_exact_batch_norm
from stages.shared.files import file_digest, replacing, write_json
from stages.shared.model import build_model, freeze_through, head_parameters, load_source, param_groups
from stages.shared.params import Params, Recipe, load_params
from stages.shared.reproducibility import choose_device, choose_precision, describe_machine, seed_everything
from stages.shared.sampling import choose_fraction
from stages.shared.training import Epoch, fit
from stages.train.once import without_augmentation


def main(recipe_name: str) -> None:
    params = load_params()
    recipe = choose_recipe(params, recipe_name)
    device = choose_device(params.runtime.device)
    if params.runtime.num_devices > 1 and not launched():
        launch("stages.train", [recipe_name], params.runtime.num_devices, device)
        return
    with process_group(device) as device:
        train(params, recipe_name, recipe, device)


def train(params: Params, name: str, recipe: Recipe, device: torch.device) -> None:
    split, manifest = load_train_split(artifacts.TRAIN_SPLIT), load_manifest(artifacts.MANIFEST)
    source = artifacts.source_weights(params.model.weights) if recipe.init == "pretrained" else None
    precision = choose_precision(recipe.precision, device)
    machine = describe_machine(device)
    print(
        f"{name}: {params.model.architecture} on {machine['device']}, {str(precision).removeprefix('torch.')}",
        flush=True,
    )

    seed = params.seed if recipe.seed is None else recipe.seed
    model, groups = make_model(
        params.model.architecture,
        manifest.class_names,
        manifest.transform.crop,
        source,
        head_init=recipe.head_init,
        freeze=recipe.freeze,
        lr=recipe.lr,
        head_lr_multiplier=recipe.head_lr_multiplier,
        seed=seed,
    )
    facts = Facts(
        architecture=params.model.architecture,
        class_names=manifest.class_names,
        transform=manifest.transform,
        recipe=name,
        seed=seed,
        source_digest=file_digest(source) if source else None,
        data_digest=manifest.digest,
    )
    resume_path = (
        artifacts.CACHE
        / "train"
        / name
        / f"{fingerprint(recipe, facts, params.runtime.num_devices, precision, machine)}.pt"
    )
    chosen = choose_fraction(torch.from_numpy(split.labels), recipe.train_fraction, seed)
    trained, features = with_exact_batch_norm(model) if params.runtime.batch_norm == "exact" else model, None
    if recipe.augmentation == "none":
        trained, split, features = without_augmentation(
            trained,
            head_parameters(params.model.architecture, manifest.transform.crop),
            split,
            chosen,
            manifest.transform,
            batch_size=recipe.batch_size,
            device=device,
            precision=precision,
        )
        chosen = torch.arange(len(split))
    history = fit(
        trained,
        groups,
        split,
        chosen,
        crop=manifest.transform.crop,
        mean=manifest.transform.mean,
        std=manifest.transform.std,
        seed=seed,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        device=device,
        precision=precision,
        execution=params.runtime.step,
        augment=recipe.augmentation != "none",
        features=features,
        resume_path=resume_path,
        name=name,
    )
    if rank_and_world_size()[0] == 0:
        write_outputs(
            artifacts.train_dir(name),
            model,
            facts,
            history,
            {"precision": str(precision).removeprefix("torch."), **machine},
        )
        resume_path.unlink(missing_ok=True)


def choose_recipe(params: Params, name: str) -> Recipe:
    if name not in params.train:
        raise ValueError(f"params.yaml has no recipe {name!r} under train; it has {', '.join(params.train)}")
    return params.train[name]


def make_model(
    architecture: str,
    class_names: tuple[str, ...],
    crop: int,
    source: Path | None,
    *,
    head_init: Mapping[str, int],
    freeze: str,
    lr: float,
    head_lr_multiplier: float,
    seed: int,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The model to train and its optimizer's groups; from `source` (a safetensors state) where there is one."""
    seed_everything(seed)
    model = build_model(architecture, len(class_names), crop)
    head = head_parameters(architecture, crop)
    unknown = set(head_init) - set(class_names)
    if unknown:
        raise ValueError(
            f"head_init names {', '.join(sorted(unknown))}; the data's classes are {', '.join(class_names)}"
        )
    if source:
        rows = {class_names.index(name): row for name, row in head_init.items()}
        load_source(model, architecture, crop, load_file(source), rows)
    freeze_through(model, freeze, head)
    return model, param_groups(model, head, lr, head_lr_multiplier)


def fingerprint(
    recipe: Recipe, facts: Facts, num_devices: int, precision: torch.dtype, machine: Mapping[str, str]
) -> str:
    """Names the resume file: a run goes on from it only when all that shapes its arithmetic is the same."""
    everything = [recipe.model_dump(), asdict(facts), num_devices, str(precision), dict(machine)]
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
