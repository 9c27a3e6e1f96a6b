"""Optimization: the loss, the optimizer, its rates over the training, the weights' running average."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stages.shared.model import layers_of


@dataclass(frozen=True)
class Optimization:
    """The settings by which weights are updated. `lr` is the highest; every other rate is a multiple of it."""

    lr: float
    optimizer: str = "sgd"  # sgd | adamw
    momentum: float = 0.0  # sgd's
    weight_decay: float = 0.0
    head_lr_multiplier: float = 1.0
    layer_decay: float = 1.0  # the lr's factor for each layer further from the head
    schedule: str = "constant"  # constant | cosine
    warmup: float = 0.0  # fraction of all steps over which the lr rises from 0
    ema: float = 0.0  # how much of the weights' running average each step keeps; 0: the last weights are the result
    batch_norm: str = "train"  # train | frozen: running statistics follow the batches, or stay as they are
    loss: str = "sum"  # sum | mean, over a full batch
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None  # of each class's images in the loss


def param_groups(model: nn.Module, head: Sequence[str], optimization: Optimization) -> list[dict[str, Any]]:
    """The optimizer's groups of parameters, each with its lr: a group for the head, one for the backbone's other rate or rates.

    `head` are the names of the head's parameters. Frozen parameters are in no group.
    """
    lr, decay = optimization.lr, optimization.layer_decay
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = layers_of(model) if decay < 1 else [list(trainable)]
    backbone = [[name for name in layer if name in trainable and name not in head] for layer in layers]
    backbone = [layer for layer in backbone if layer]
    groups = [
        {"params": [trainable[name] for name in layer], "lr": lr * decay ** (len(backbone) - i if decay < 1 else 0)}
        for i, layer in enumerate(backbone)
    ]
    own = [trainable[name] for name in trainable if name in head]
    return groups + ([{"params": own, "lr": lr * optimization.head_lr_multiplier}] if own else [])


def make_optimizer(
    groups: list[dict[str, Any]], optimization: Optimization, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of these groups, with all of its state made; the rates are tensors, so that a captured step follows them."""
    groups = [{**group, "lr": torch.tensor(group["lr"], device=device), "peak_lr": group["lr"]} for group in groups]
    decay = optimization.weight_decay
    if optimization.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            groups, momentum=optimization.momentum, weight_decay=decay, fused=True
        )
    elif optimization.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=True, capturable=device.type == "cuda")
    else:
        raise ValueError(f"optimizer is {optimization.optimizer!r}; allowed are sgd and adamw")
    _make_state(optimizer)
    return optimizer


@torch.no_grad()
def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimizer make what it remembers of a parameter, which it does in its first step, and set all of it to 0.

    That is where SGD and AdamW start from, and it leaves a captured step no tensor to make.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)
        parameter.grad = None
    for tensor in state_tensors(optimizer):
        tensor.zero_()


def state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All that an optimizer remembers between steps, in the order of its parameters."""
    states = (optimizer.state[p] for group in optimizer.param_groups for p in group["params"] if p in optimizer.state)
    return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def lr_factor(optimization: Optimization, progress: float) -> float:
    """The factor of every lr at `progress` in [0, 1) of the training."""
    warmup = optimization.warmup
    if progress < warmup:
        return min(1.0, (progress + 1e-3) / warmup)
    if optimization.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    return 1.0


def follow_schedule(optimizer: torch.optim.Optimizer, optimization: Optimization, progress: float) -> None:
    """Set the learning rates for `progress` in [0, 1) of the training; a constant rate needs no call to the device."""
    if optimization.schedule == "constant" and not optimization.warmup:
        return
    factor = lr_factor(optimization, progress)
    for group in optimizer.param_groups:
        group["lr"].fill_(group["peak_lr"] * factor)


class AverageWeights:
    """The running average of a model's weights and statistics, which remembers the past the longer the more steps it has seen.

    A step keeps min(decay, (1 + n) / (10 + n)) of the average; n counts the steps on the device. Source: TensorFlow's
    ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.current = [*model.parameters(), *model.buffers()]
        self.average = [tensor.detach().clone() for tensor in self.current]
        self.num_steps = torch.zeros((), device=self.current[0].device)

    @torch.no_grad()
    def update(self) -> None:
        taken = 1 - ((1 + self.num_steps) / (10 + self.num_steps)).clamp(max=self.decay)
        for average, current in zip(self.average, self.current, strict=True):
            if average.is_floating_point():
                average.lerp_(current, taken.to(average.dtype))
            else:
                average.copy_(current)
        self.num_steps += 1

    @torch.no_grad()
    def put_into_model(self) -> None:
        for average, current in zip(self.average, self.current, strict=True):
            current.copy_(average)

    def tensors(self) -> list[torch.Tensor]:
        return [*self.average, self.num_steps]
