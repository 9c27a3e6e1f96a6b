"""One training step: images, forward, loss, backward, all devices' gradients summed, update.

It never waits for the device: losses are added up there and read once an epoch.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from stages.shared.distributed import ExactBatchNorm2d, rank_and_world_size, sum_over_devices
from stages.shared.optimization import Optimization
from stages.shared.sampling import Draws

Step = Callable[[Draws], None]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NONE_BAD = torch.iinfo(torch.int64).max


class Totals:
    """Loss, hits, images and the first step whose loss was not finite, kept on the device until they are read."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, images
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.first_bad = torch.full((), NONE_BAD, dtype=torch.int64, device=device)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        loss = loss.detach().double()
        correct = (logits.argmax(1) == labels).sum().double()
        self.sums += torch.stack([loss, correct, torch.full_like(loss, len(labels))])
        self.first_bad.copy_(
            torch.where(torch.isfinite(loss), self.first_bad, torch.minimum(self.first_bad, self.step))
        )
        self.step += 1

    def tensors(self) -> list[torch.Tensor]:
        return [self.sums, self.step, self.first_bad]

    def reset(self) -> None:
        self.sums.zero_()
        self.step.zero_()
        self.first_bad.fill_(NONE_BAD)


class FlatGradients:
    """All gradients as views of one buffer: cleared by one call, added up over the devices by one call."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.buffer = torch.zeros(
            sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device
        )
        start = 0
        for parameter in parameters:
            view = self.buffer[start : start + parameter.numel()]
            channels_last = parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
            if channels_last:  # a gradient laid out as its weight is, so that the optimizer can fuse
                n, c, h, w = parameter.shape
                parameter.grad = view.view(n, h, w, c).permute(0, 3, 1, 2)
            else:
                parameter.grad = view.view_as(parameter)
            start += parameter.numel()

    def clear(self) -> None:
        self.buffer.zero_()

    def add_up(self) -> None:
        sum_over_devices(self.buffer)


class OwnGradients:
    """One device's gradients: dropped, so that the backward pass writes each instead of adding it to zeros."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def add_up(self) -> None:
        pass


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    cut: Callable[[Draws], torch.Tensor],
    labels: torch.Tensor,
    totals: Totals,
    optimization: Optimization,
    full_batch: int,
    autocast: bool,
) -> Step:
    """A step on device tensors: `cut` makes a batch's images, `labels` int64 (N,) are the whole split's.

    Of a mean, every image weighs 1/`full_batch`, in the last batch of an epoch too, which may be smaller.
    """
    if labels.device.type == "cpu":
        keep_freed_memory()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = FlatGradients(trainable) if rank_and_world_size()[1] > 1 else OwnGradients(trainable)
    # A device's share of a small last batch may be empty; it must still take part where batch norm talks to the others.
    meets_others = any(isinstance(module, ExactBatchNorm2d) for module in model.modules())
    summed_loss = make_loss(labels, optimization, next(model.parameters()).dtype)

    def step(draws: Draws) -> None:
        gradients.clear()
        if len(draws.index) or meets_others:
            if autocast:
                with torch.autocast(draws.index.device.type, torch.bfloat16):
                    logits = model(cut(draws))
            else:
                logits = model(cut(draws))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = summed_loss(logits, draws)
            (loss / full_batch if optimization.loss == "mean" else loss).backward()
            totals.add(loss, logits, labels[draws.index])
        gradients.add_up()
        optimizer.step()

    return step


def make_loss(
    labels: torch.Tensor, optimization: Optimization, dtype: torch.dtype
) -> Callable[[torch.Tensor, Draws], torch.Tensor]:
    """The sum of a batch's cross-entropies, (), as a function of its logits (n, K) and draws."""
    weights = optimization.class_weights
    weight = None if weights is None else torch.tensor(weights, dtype=dtype, device=labels.device)
    cross_entropy = partial(F.cross_entropy, weight=weight, label_smoothing=optimization.label_smoothing)

    def summed_loss(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
        own = labels[draws.index]
        if draws.share is None or draws.other_index is None:
            return cross_entropy(logits, own, reduction="sum")
        of_own = cross_entropy(logits, own, reduction="none")
        of_other = cross_entropy(logits, labels[draws.other_index], reduction="none")
        return torch.lerp(of_other, of_own, draws.share.to(logits.dtype)).sum()

    return summed_loss


def keep_freed_memory() -> None:
    """Let glibc give a step the memory that the last one freed, instead of mapping new pages for every large tensor.

    Touching new pages took a seventh of a ResNet-18 step on two cores. The process keeps its largest size until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # musl has none
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
