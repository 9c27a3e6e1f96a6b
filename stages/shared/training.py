"""The training loop of the train and pretrain stages."""

import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from stages.shared.dataset import TrainSplit
from stages.shared.distributed import average_batch_norm, rank_and_world_size, sum_over_devices
from stages.shared.files import replacing
from stages.shared.image_source import image_source
from stages.shared.model import train_mode
from stages.shared.sampling import Draws, epoch_seed, plan_epoch, steps
from stages.shared.steps import NONE_BAD, Step, Totals, captured, training_step


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
    chosen: torch.Tensor,
    *,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    epochs: int,
    batch_size: int,
    momentum: float,
    weight_decay: float,
    device: torch.device,
    precision: torch.dtype,
    execution: str,
    augment: bool = True,
    features: torch.Tensor | None = None,
    lr_scale: Callable[[float], float] | None = None,
    resume_path: Path | None = None,
    name: str = "train",
) -> list[Epoch]:
    """Train `model` in place with SGD on the SUM of each batch's losses, over the images `chosen` (n,) of `split`.

    `groups` are the optimizer's (parameters and lr); `lr_scale` maps progress in [0, 1) to a factor of every lr. After each
    epoch all that the next one needs is written to `resume_path`; a run that finds the file goes on from there, bit for bit on a CPU.
    Without `augment` the images are taken whole, and where `features` (N, ...) are given, `model` is fed those instead.
    Returns one `Epoch` each. Raises ValueError when the loss stops being finite or the device's memory is too small.
    """
    dtype = torch.float64 if precision == torch.float64 else torch.float32
    model.to(device, dtype).to(memory_format=torch.channels_last)
    optimizer = _make_optimizer(groups, momentum, weight_decay, device)
    totals = Totals(device)
    fetch, step = _prepare(
        model, optimizer, split, features, totals, crop, mean, std, batch_size, device, precision, execution
    )
    history = _resume(resume_path, model, optimizer)
    sizes = torch.from_numpy(np.ascontiguousarray(split.sizes))
    rank, world_size = rank_and_world_size()
    num_steps = math.ceil(len(chosen) / batch_size)

    for epoch in range(len(history) + 1, epochs + 1):
        torch.manual_seed(epoch_seed(seed, epoch) + rank)  # dropout
        train_mode(model)
        totals.reset()
        plan = plan_epoch(sizes, chosen, seed, epoch, augment)
        draws = Draws(*(part.to(device) for part in plan))
        start = time.perf_counter()
        bar = tqdm(
            zip(steps(plan, batch_size, rank, world_size), steps(draws, batch_size, rank, world_size), strict=True),
            total=num_steps,
            desc=f"{name} {epoch}/{epochs}",
            disable=rank > 0 or None,
            leave=False,
        )
        for i, (on_host, batch) in enumerate(bar):
            if lr_scale:
                _scale_lr(optimizer, lr_scale((epoch - 1 + i / num_steps) / epochs))
            fetch(on_host)
            _run_step(step, batch, batch_size)
        history.append(_finish_epoch(epoch, totals, optimizer, start, name))
        average_batch_norm(model)
        if resume_path and rank == 0:
            _save_resume(resume_path, model, optimizer, history)
        if rank == 0:
            print(_line(name, history[-1], epochs), flush=True)
    return history


def _make_optimizer(
    groups: list[dict[str, Any]], momentum: float, weight_decay: float, device: torch.device
) -> torch.optim.SGD:
    # The lr is a tensor, so that a captured step follows the schedule; the momentum starts as zeros, which is the same
    # first step as torch's own and leaves a captured step no buffer to create.
    groups = [{**group, "lr": torch.tensor(group["lr"], device=device), "base_lr": group["lr"]} for group in groups]
    optimizer = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay, fused=True)
    if momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _scale_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"].fill_(group["base_lr"] * factor)


def _prepare(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    split: TrainSplit,
    features: torch.Tensor | None,
    totals: Totals,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
    execution: str,
) -> tuple[Callable[[Draws], None], Step]:
    """`fetch` and `step`, executed as asked: `auto` is a CUDA graph on CUDA (in one process), eager elsewhere."""
    if execution == "auto":
        execution = "graph" if device.type == "cuda" else "eager"
    if execution == "graph" and device.type != "cuda":
        raise ValueError("runtime.step is graph, which needs CUDA; set it to auto, eager or compile")
    dtype = torch.float64 if precision == torch.float64 else torch.float32
    if features is None:
        # On CUDA straight to what autocast makes of it, which is half the traffic.
        fed = torch.bfloat16 if precision == torch.bfloat16 and device.type == "cuda" else dtype
        compiled = execution != "eager"
        fetch, images = image_source(split.pixels, batch_size, crop, mean, std, fed, device, compiled)
    else:
        fetch, images = lambda _: None, lambda draws: features[draws.index]
    labels = torch.from_numpy(np.ascontiguousarray(split.labels)).to(device)
    forward = torch.compile(model) if execution == "compile" else model
    train_mode(model)
    step = training_step(forward, optimizer, images, labels, totals, precision == torch.bfloat16)  # type: ignore[arg-type]
    if device.type == "cuda" and execution != "eager":
        buffers = [state["momentum_buffer"] for state in optimizer.state.values() if "momentum_buffer" in state]
        changing = [*model.parameters(), *model.buffers(), *buffers, totals.sums, totals.step, totals.first_bad]
        step = captured(step, changing, device)
    return fetch, step


def _run_step(step: Step, batch: Draws, batch_size: int) -> None:
    try:
        step(batch)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ValueError(
            f"the device's memory is too small for batch_size {batch_size}: lower it, or preprocess.crop ({error})"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch norm needs more than one value per channel, and a batch has {len(batch.index)} image(s): change batch_size"
        ) from None


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a class of its own for the device; for the host's memory only the allocator's words."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _finish_epoch(epoch: int, totals: Totals, optimizer: torch.optim.Optimizer, start: float, name: str) -> Epoch:
    """Read the device's sums, once; stop if a loss was not finite."""
    sums = totals.sums.clone()
    sum_over_devices(sums)
    loss, correct, images = sums.tolist()
    seconds = time.perf_counter() - start
    first_bad = int(totals.first_bad)
    if not math.isfinite(loss):
        at = f" at step {first_bad + 1}" if first_bad != NONE_BAD else ""
        rates = ", ".join(f"{float(group['lr']):g}" for group in optimizer.param_groups)
        raise ValueError(
            f"{name}: the loss is {loss} in epoch {epoch}{at}, at lr {rates}: lower train.{name}.lr. The last finished epoch is kept"
        )
    return Epoch(epoch, loss / images, correct / images, images / seconds, seconds)


def _line(name: str, done: Epoch, epochs: int) -> str:
    return (
        f"{name} epoch {done.epoch}/{epochs}: loss {done.train_loss:.3f}, train accuracy {done.train_accuracy:.3f}, "
        f"{done.examples_per_second:.0f} examples/s"
    )


def _save_resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Epoch]) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [asdict(epoch) for epoch in history],
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with replacing(path) as part:
        part.write_bytes(hashlib.sha256(content).digest() + content)


def _resume(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
    """The epochs done; the model and the optimizer are as they were after the last of them."""
    if path is None or not path.exists():
        return []
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:  # torch itself reads some damaged files without a word
        print(f"{path}: damaged, as by a power cut while it was written; starting from the first epoch", flush=True)
        return []
    state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    with torch.no_grad():
        for own, saved in zip(model.state_dict().values(), state["model"].values(), strict=True):
            own.copy_(saved)
        for key, buffers in state["optimizer"]["state"].items():
            own_state = list(optimizer.state.values())[key]
            own_state["momentum_buffer"].copy_(buffers["momentum_buffer"])
    history = [Epoch(**epoch) for epoch in state["history"]]
    print(f"resuming after epoch {len(history)} ({path})", flush=True)
    return history
