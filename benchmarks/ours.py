"""Our training step as `stages.shared.training.fit` runs it, and the same on one resident batch, without a data path."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.workload import (
    ARCHITECTURE,
    HEAD_LR_MULTIPLIER,
    LR,
    MEAN,
    STD,
    WEIGHT_DECAY,
    Size,
    chosen_images,
    make_model,
)
from stages.shared.capture import captured
from stages.shared.dataset import TrainSplit
from stages.shared.image_source import image_source
from stages.shared.model import head_parameters, train_mode
from stages.shared.optimization import Optimization, make_optimizer, param_groups
from stages.shared.reproducibility import Execution, choose_precision
from stages.shared.sampling import Draws, Sampling, batches, plan_epoch
from stages.shared.steps import Step, Totals, training_step
from stages.shared.training import Epoch, fit
from stages.shared.transforms import Transform

FINETUNE = Optimization(LR, head_lr_multiplier=HEAD_LR_MULTIPLIER, weight_decay=WEIGHT_DECAY)


@dataclass(frozen=True)
class Ours:
    step: Step
    resident_step: Step  # the same step, whose images are one random batch that lies on the device
    crop: Step  # the data path alone
    totals: Totals


def prepare(
    split: TrainSplit, size: Size, device: torch.device, precision: torch.dtype, compiled: bool = False
) -> Ours:
    """On CUDA each is captured in a CUDA graph; `compiled` lets torch.compile write the model's kernels."""
    fed = torch.bfloat16 if precision == torch.bfloat16 and device.type == "cuda" else torch.float32  # as fit has it
    _, cut = image_source(split.pixels, Transform(size.resize, size.crop, MEAN, STD), size.batch_size, fed, device)
    random = torch.randn(size.batch_size, 3, size.crop, size.crop, device=device, dtype=fed)
    random = random.to(memory_format=torch.channels_last)
    totals = Totals(device)
    capture = device.type == "cuda"

    def crop(draws: Draws) -> None:
        cut(draws)

    return Ours(
        step=_step(split, size.crop, cut, totals, device, precision, compiled),
        resident_step=_step(
            split, size.crop, lambda draws: random[: len(draws.index)], totals, device, precision, compiled
        ),
        crop=captured(crop, (), device) if capture else crop,
        totals=totals,
    )


def _step(
    split: TrainSplit,
    crop: int,
    cut: Callable[[Draws], torch.Tensor],
    totals: Totals,
    device: torch.device,
    precision: torch.dtype,
    compiled: bool,
) -> Step:
    model = make_model(crop).to(device).to(memory_format=torch.channels_last)
    train_mode(model)
    groups = param_groups(model, head_parameters(ARCHITECTURE, crop), FINETUNE)
    optimizer = make_optimizer(groups, FINETUNE, device)
    labels = torch.from_numpy(split.labels).to(device)
    forward: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    autocast = precision == torch.bfloat16
    step = training_step(forward, optimizer, cut, labels, totals, FINETUNE, len(labels), autocast)
    if device.type == "cuda":
        return captured(step, [*model.parameters(), *model.buffers(), *totals.tensors()], device)
    return step


def fit_recipe(
    model: nn.Module,
    split: TrainSplit,
    chosen: torch.Tensor,
    *,
    crop: int,
    epochs: int,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    name: str = "ours",
    step: str = "auto",
    precision: torch.dtype | None = None,
    resume_path: Path | None = None,
) -> list[Epoch]:
    """`fit` as the train stage calls it for params.yaml's finetune recipe, on the images `chosen` (n,)."""
    return fit(
        model,
        param_groups(model, head_parameters(ARCHITECTURE, crop), FINETUNE),
        split,
        Transform(crop, crop, MEAN, STD),
        Sampling(chosen, seed, epochs, batch_size),
        FINETUNE,
        Execution(device, precision or choose_precision("auto", device), step),
        resume_path=resume_path,
        name=name,
    )


def plan(split: TrainSplit, num_images: int, device: torch.device, epoch: int = 1) -> Draws:
    """The sampling plan of an epoch of `num_images` images, on the device."""
    draws = plan_epoch(torch.from_numpy(split.sizes), chosen_images(num_images, len(split)), 0, epoch)
    return draws.each(lambda part: part.to(device))


def run(step: Step, draws: Draws, batch_size: int) -> int:
    """All batches of `draws`; the caller waits for the device."""
    for batch in batches(draws, batch_size):
        step(batch)
    return len(draws.index)


def run_reading_losses(ours: Ours, batches: Iterable[Draws]) -> int:
    """As d2l's timer counts: each step ends when the host has its loss."""
    images = 0
    for batch in batches:
        ours.step(batch)
        ours.totals.sums.tolist()
        images += len(batch.index)
    return images
