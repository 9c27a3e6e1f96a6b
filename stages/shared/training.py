"""The training loop of the train and pretrain stages."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from stages.shared.capture import captured
from stages.shared.dataset import TrainSplit
from stages.shared.distributed import average_batch_norm, follow_first, rank_and_world_size, sum_over_devices
from stages.shared.encoded import EncodedImages
from stages.shared.image_source import image_source
from stages.shared.memory import is_out_of_memory
from stages.shared.model import train_mode
from stages.shared.optimization import (
    AverageWeights,
    Optimization,
    follow_schedule,
    make_optimizer,
    state_tensors,
)
from stages.shared.reproducibility import Execution
from stages.shared.resume import ResumeFile
from stages.shared.sampling import Draws, Sampling, batches, dropout_seed, plan_epoch
from stages.shared.steps import NONE_BAD, Totals, training_step
from stages.shared.transforms import Transform


@dataclass(frozen=True)
class Epoch:
    epoch: int  # from 1
    train_loss: float  # mean over the epoch's images, in training mode, as the weights moved (d2l's definition)
    train_accuracy: float
    examples_per_second: float  # images of all devices / seconds, cropping included
    seconds: float


def fit(
    model: nn.Module,
    groups: list[dict[str, Any]],
    split: TrainSplit,
    transform: Transform,
    sampling: Sampling,
    optimization: Optimization,
    execution: Execution,
    *,
    features: torch.Tensor | None = None,
    resume_path: Path | None = None,
    name: str = "train",
) -> list[Epoch]:
    """Train `model` in place; returns one `Epoch` each.

    `groups` are `param_groups`' of what is trained. Where `features` (N, ...) are given, `model` is fed those instead of images.
    All that the next epoch needs is written to `resume_path` now and then; a run that finds the file goes on from there.
    Raises ValueError when the loss stops being finite or the device's memory is too small.
    """
    device = execution.device
    model.to(device, execution.dtype).to(memory_format=torch.channels_last)
    optimizer, totals = make_optimizer(groups, optimization, device), Totals(device)
    average = AverageWeights(model, optimization.ema) if optimization.ema else None
    if average:
        optimizer.register_step_post_hook(lambda *_: average.update())
    remembered = [*state_tensors(optimizer), *(average.tensors() if average else [])]
    changing = [*model.parameters(), *model.buffers(), *remembered]

    train_mode(model, optimization.batch_norm)
    run = make_run(model, optimizer, totals, split, features, transform, sampling, optimization, execution, changing)

    rank, _ = rank_and_world_size()
    resume = ResumeFile(resume_path, changing, execution.save_every) if resume_path else None
    history = [Epoch(**epoch) for epoch in follow_first(resume.load() if resume else [], changing)]
    for epoch in range(len(history) + 1, sampling.epochs + 1):
        totals.reset()
        start = time.perf_counter()
        for progress, on_host, batch in plan_batches(split, sampling, epoch, device, name):
            follow_schedule(optimizer, optimization, progress)
            run(on_host, batch)
        history.append(read_totals(totals, optimizer, epoch, start, name))
        average_batch_norm(model)
        if rank == 0:
            if resume:
                resume.save([asdict(done) for done in history])
            print(describe(name, history[-1], sampling.epochs), flush=True)
    if average:
        average.put_into_model()
        average_batch_norm(model)
    return history


def make_run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    totals: Totals,
    split: TrainSplit,
    features: torch.Tensor | None,
    transform: Transform,
    sampling: Sampling,
    optimization: Optimization,
    execution: Execution,
    changing: list[torch.Tensor],
) -> Callable[[Draws, Draws], None]:
    """A function of a batch's draws, on the host and on the device, that runs the step as `execution` says."""
    device, how = execution.device, execution.chosen_step(sampling.epochs * sampling.num_batches)
    if features is None:
        # On CUDA straight to what autocast makes of it, which is half the traffic.
        fed = torch.bfloat16 if execution.autocast and device.type == "cuda" else execution.dtype
        rows = sampling.full_batch * (2 if sampling.augmentation and sampling.augmentation.mixup else 1)
        fetch, cut = image_source(split.pixels, transform, rows, fed, device, compiled=how != "eager")
    else:
        fetch, cut = lambda _: None, lambda draws: features[draws.index]
    labels = torch.from_numpy(np.ascontiguousarray(split.labels)).to(device)
    make = partial(training_step, optimizer=optimizer, cut=cut, labels=labels, totals=totals)
    make = partial(make, optimization=optimization, full_batch=sampling.full_batch, autocast=execution.autocast)
    eager = make(model)
    step = make(torch.compile(model)) if how == "compile" else eager
    if how != "eager" and device.type == "cuda":
        step = captured(step, [*changing, *totals.tensors()], device, otherwise=eager)

    def run(on_host: Draws, batch: Draws) -> None:
        with explained(len(batch.index), sampling.batch_size):
            fetch(on_host)
            step(batch)

    return run


def plan_batches(
    split: TrainSplit, sampling: Sampling, epoch: int, device: torch.device, name: str
) -> Iterator[tuple[float, Draws, Draws]]:
    """This device's share of each batch of an epoch: the progress of the training in [0, 1), the draws on the host, and on the device."""
    rank, world_size = rank_and_world_size()
    torch.manual_seed(dropout_seed(sampling.seed, epoch, rank))
    sizes = torch.from_numpy(np.ascontiguousarray(split.sizes))
    plan = plan_epoch(sizes, sampling.chosen, sampling.seed, epoch, sampling.augmentation)
    if isinstance(split.pixels, EncodedImages):
        own = batches(plan, sampling.batch_size, rank, world_size)
        split.pixels.expect(torch.cat([batch.to_cut().index for batch in own]).tolist())
    draws = plan.each(lambda part: part.to(device))
    bar = tqdm(
        zip(*(batches(part, sampling.batch_size, rank, world_size) for part in (plan, draws)), strict=True),
        total=sampling.num_batches,
        desc=f"{name} {epoch}/{sampling.epochs}",
        disable=rank > 0 or None,
        leave=False,
    )
    for i, (on_host, batch) in enumerate(bar):
        yield (epoch - 1 + i / sampling.num_batches) / sampling.epochs, on_host, batch


@contextmanager
def explained(num_images: int, batch_size: int) -> Iterator[None]:
    """Turn the errors that a batch of the wrong size causes into a ValueError that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"the device's memory is too small for batch_size {batch_size}: lower it, or preprocess.crop ({error})"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch norm needs more than one value per channel, and a batch has {num_images} image(s): change batch_size"
        ) from None


def read_totals(totals: Totals, optimizer: torch.optim.Optimizer, epoch: int, start: float, name: str) -> Epoch:
    """An epoch's sums, read from the device once. Raises ValueError where a loss was not finite."""
    sums = totals.sums.clone()
    sum_over_devices(sums)
    loss, correct, images = sums.tolist()
    seconds = time.perf_counter() - start
    first_bad = int(totals.first_bad)
    if not math.isfinite(loss):
        at = f" at step {first_bad + 1}" if first_bad != NONE_BAD else ""
        rates = ", ".join(f"{float(group['lr']):g}" for group in optimizer.param_groups)
        raise ValueError(f"{name}: the loss is {loss} in epoch {epoch}{at}, at lr {rates}: lower its lr in params.yaml")
    return Epoch(epoch, loss / images, correct / images, images / seconds, seconds)


def describe(name: str, done: Epoch, epochs: int) -> str:
    return (
        f"{name} epoch {done.epoch}/{epochs}: loss {done.train_loss:.3f}, train accuracy {done.train_accuracy:.3f}, "
        f"{done.examples_per_second:.0f} examples/s"
    )
