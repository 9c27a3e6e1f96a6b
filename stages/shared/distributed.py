"""Train on several devices, of one machine (node) or more: a process each, gradients summed, batch norm per device or exact."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from stages.shared.nodes import watching_nodes


def launched() -> bool:
    """Tell whether this process is one of several started by `launch` (or by torchrun)."""
    return "LOCAL_RANK" in os.environ


def launch(module: str, arguments: Iterable[str], num_devices: int, device: torch.device, num_nodes: int = 1) -> None:
    """Run `python -m module` in `num_devices` processes under torchrun and wait for them; of several nodes, each does so.

    Raises ValueError when there are too few CUDA devices or a node does not know which it is, SystemExit with torchrun's
    exit code when a process fails.
    """
    if device.type == "cuda" and torch.cuda.device_count() < num_devices:
        raise ValueError(
            f"runtime.num_devices is {num_devices}, but torch finds {torch.cuda.device_count()} CUDA device(s)"
        )
    threads = max(1, torch.get_num_threads() // num_devices)
    meeting = ["--standalone"] if num_nodes == 1 else meeting_point(num_nodes)
    torchrun = [sys.executable, "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={num_devices}"]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    finished = subprocess.run([*torchrun, "-m", module, *arguments], env=environment)
    if finished.returncode:
        raise SystemExit(finished.returncode)


def meeting_point(num_nodes: int) -> list[str]:
    """torchrun's arguments for several nodes, from the environment variables that it has for them."""
    address, rank = os.environ.get("MASTER_ADDR"), os.environ.get("NODE_RANK", "")
    if not address or not rank.isdecimal() or int(rank) >= num_nodes:
        raise ValueError(
            f"runtime.num_nodes is {num_nodes}: start the same stage on each machine, with MASTER_ADDR set to the first one's "
            f"address and NODE_RANK to 0 there and up to {num_nodes - 1} on the others (found {rank!r})"
        )
    port = os.environ.get("MASTER_PORT", "29500")
    return [f"--nnodes={num_nodes}", f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes, if there are any; yields the device that is this process's own."""
    if not launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if int(os.environ["LOCAL_RANK"]) >= (count := torch.cuda.device_count()):
            raise ValueError(f"process {device.index} of this machine needs a CUDA device of its own; it has {count}")
        torch.cuda.set_device(device)
    # NCCL is told its device, so that it connects at once and does not guess the device from the rank.
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None
    )
    with watching_nodes():
        yield device
    dist.destroy_process_group()  # not after a failure: NCCL would wait for the graphs that the traceback keeps alive


def rank_and_world_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_devices(values: torch.Tensor) -> None:
    if dist.is_initialized():
        dist.all_reduce(values)


def average_batch_norm(model: nn.Module) -> None:
    """Replace each device's running statistics by their mean over the devices."""
    if not dist.is_initialized():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def follow_first(history: list[Any], tensors: Iterable[torch.Tensor]) -> list[Any]:
    """The first process's history on all, and where that has begun, its tensors: another node has no resume file."""
    if not dist.is_initialized():
        return history
    told = [history]
    dist.broadcast_object_list(told, src=0)
    if told[0]:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)
    return told[0]


class _Sum(torch.autograd.Function):
    """The sum over the devices, which is also how its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, gradient)


class ExactBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batch of all devices, of any shard sizes. `nn.SyncBatchNorm` does the same but refuses CPU tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        values = x.float() if x.dtype == torch.bfloat16 else x
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = _Sum.apply(torch.cat([values.sum((0, 2, 3)), count]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = values - mean.view(1, -1, 1, 1)
        # The second pass costs one more small message; the mean of squares less the square of the mean would cancel.
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            # Of one value the variance is 0, biased or not, and not 0/0.
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def with_exact_batch_norm(model: nn.Module) -> nn.Module:
    """`model` with every BatchNorm2d replaced by an `ExactBatchNorm2d` that holds the same tensors; the state's names stay."""
    for name, child in model.named_children():
        if type(child) is nn.BatchNorm2d:
            exact = ExactBatchNorm2d(child.num_features, child.eps, child.momentum)
            exact._parameters, exact._buffers, exact.training = child._parameters, child._buffers, child.training
            setattr(model, name, exact)
        else:
            with_exact_batch_norm(child)
    return model
