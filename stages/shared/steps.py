"""One training step and the ways to execute it: eager, captured in a CUDA graph, compiled.

A step gets its images, runs forward and backward on the SUM of the batch's losses, adds the gradients of all devices and updates the
weights. It never waits for the device: losses are added up there and read once an epoch.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from stages.shared.distributed import ExactBatchNorm2d, rank_and_world_size, sum_over_devices
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
    images: Callable[[Draws], torch.Tensor],
    labels: torch.Tensor,
    totals: Totals,
    autocast: bool,
) -> Step:
    """A step on device tensors; `labels` int64 (N,) of the whole split."""
    if labels.device.type == "cpu":
        keep_freed_memory()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = FlatGradients(trainable) if rank_and_world_size()[1] > 1 else OwnGradients(trainable)
    # A device's share of a small last batch may be empty; it must still take part where batch norm talks to the others.
    meets_others = any(isinstance(module, ExactBatchNorm2d) for module in model.modules())

    def step(draws: Draws) -> None:
        gradients.clear()
        if len(draws.index) or meets_others:
            targets = labels[draws.index]
            if autocast:
                with torch.autocast(draws.index.device.type, torch.bfloat16):
                    logits = model(images(draws))
            else:
                logits = model(images(draws))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = F.cross_entropy(logits, targets, reduction="sum")
            loss.backward()
            totals.add(loss, logits, targets)
        gradients.add_up()
        optimizer.step()

    return step


def keep_freed_memory() -> None:
    """Let glibc give a step the memory that the last one freed, instead of mapping new pages for every large tensor.

    Touching new pages took a seventh of a ResNet-18 step on two cores. The process keeps its largest size until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # musl has none
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def captured(step: Step, state: Sequence[torch.Tensor], device: torch.device) -> Step:
    """`step` replayed from a CUDA graph, one for each batch size seen; of several devices, only the first size, which all share.

    Warming up and capturing run the step for real, so `state` (every tensor that a step changes) is put back afterwards.
    """
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, Draws]] = {}
    pool = torch.cuda.graph_pool_handle()  # shared: nothing that one graph leaves in it is read by another

    def capture(draws: Draws) -> tuple[torch.cuda.CUDAGraph, Draws]:
        static = Draws(*(part.clone() for part in draws))
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                step(static)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog may ask for events meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step(static)
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        return graph, static

    def replay(draws: Draws) -> None:
        size = len(draws.index)
        if size not in graphs:
            if graphs and rank_and_world_size()[1] > 1:
                # Shards of a tail differ: where another device has this size already, capturing would wait for it for ever.
                step(draws)
                return
            try:
                with fastest_convolutions():
                    graphs[size] = capture(draws)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    f"this step cannot be compiled or captured here: set runtime.step to eager ({error})"
                ) from error
        graph, static = graphs[size]
        for target, part in zip(static, draws, strict=True):
            target.copy_(part)
        graph.replay()

    return replay


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape and take the fastest; a captured graph keeps what it took."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
