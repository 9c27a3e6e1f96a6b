"""The model that a recipe starts from, trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from stages.shared.checkpoint import Facts
from stages.shared.dataset import TrainSplit
from stages.shared.distributed import with_exact_batch_norm
from stages.shared.model import build_model, freeze_through, head_parameters, load_source, set_head
from stages.shared.optimization import Optimization, param_groups
from stages.shared.probe import Head
from stages.shared.reproducibility import Execution, seed_everything
from stages.shared.sampling import Sampling
from stages.shared.training import Epoch, fit
from stages.train.unaugmented import without_augmentation


@dataclass(frozen=True)
class Start:
    """The start of a training."""

    source: Path | None  # a source model's state, safetensors; None: random weights
    head_rows: Mapping[str, int]  # target class -> the source model's class whose row of the head it starts from
    head: Head | None  # a probe of the source model's features; None: the head is drawn at random, but for these rows
    freeze: str | float  # none, backbone, the last frozen module's name, or a fraction of the layers
    exact_batch_norm: bool  # over the batch of all devices


def train_model(
    split: TrainSplit,
    facts: Facts,
    start: Start,
    sampling: Sampling,
    optimization: Optimization,
    execution: Execution,
    resume_path: Path,
    name: str,
) -> tuple[nn.Module, list[Epoch]]:
    """A model trained on the images that `sampling` chose of `split`, and its history."""
    architecture, transform = facts.architecture, facts.transform
    model = make_model(architecture, facts.class_names, transform.crop, start, facts.seed)
    head = head_parameters(architecture, transform.crop)
    groups = param_groups(model, head, optimization)
    trained, features = with_exact_batch_norm(model) if start.exact_batch_norm else model, None
    if sampling.augmentation is None:
        trained, split, features = without_augmentation(
            trained, head, split, sampling.chosen, transform, sampling.batch_size, execution
        )
        sampling = replace(sampling, chosen=torch.arange(len(split)))
    history = fit(
        trained,
        groups,
        split,
        transform,
        sampling,
        optimization,
        execution,
        features=features,
        resume_path=resume_path,
        name=name,
    )
    return model, history


def make_model(architecture: str, class_names: tuple[str, ...], crop: int, start: Start, seed: int) -> nn.Module:
    """The model before its first step, float32 on the CPU. Raises ValueError where a name or a shape does not fit."""
    seed_everything(seed)
    model = build_model(architecture, len(class_names), crop)
    if unknown := set(start.head_rows) - set(class_names):
        raise ValueError(f"head names {', '.join(sorted(unknown))}; the data's classes are {', '.join(class_names)}")
    if start.source:
        rows = {class_names.index(name): row for name, row in start.head_rows.items()}
        load_source(model, architecture, crop, load_file(start.source), rows)
    if start.head:
        set_head(model, head_parameters(architecture, crop), start.head.weight, start.head.bias)
    freeze_through(model, start.freeze, head_parameters(architecture, crop))
    return model
