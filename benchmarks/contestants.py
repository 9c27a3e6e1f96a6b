"""The runs that a contestant's process is asked for by name; every run ends when the device has finished."""

from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import nn

from benchmarks import ours, peers
from benchmarks.peers import Batch, Peer
from benchmarks.process import Runs
from benchmarks.roofline import convolutions
from benchmarks.timing import synchronize
from benchmarks.workload import Size, load_workload, make_model
from stages.shared.sampling import batches

PEERS = ("d2l", "torchvision", "timm", "evaluation_torchvision", "evaluation_timm")


def our_runs(size: Size, folder: Path, device: torch.device, precision: torch.dtype, compiled: bool) -> Runs:
    """timer: each step to its loss on the host; end_to_end: an epoch; steps: the same without reading; and parts of it."""
    split = load_workload(size, folder).train
    mine = ours.prepare(split, size, device, precision, compiled)
    draws = ours.plan(split, size.steps * size.batch_size, device)
    epoch = ours.plan(split, size.own_images, device)
    runs: Runs = {
        "timer": lambda: ours.run_reading_losses(mine, batches(draws, size.batch_size)),
        "end_to_end": lambda: ours.run(mine.step, epoch, size.batch_size),
        "steps": lambda: ours.run(mine.step, draws, size.batch_size),
        "resident": lambda: ours.run(mine.resident_step, draws, size.batch_size),
        "data": lambda: ours.run(mine.crop, draws, size.batch_size),
        "convolutions": convolutions(size.crop, size.batch_size, precision, device),  # FLOP
    }
    return {name: _finishing(run, device) for name, run in runs.items()}


def peer_runs(name: str, size: Size, folder: Path, device: torch.device) -> Runs:
    """timer: batches that are ready on the host, to their losses; end_to_end: its loader's epoch."""
    files = list(islice(cycle(load_workload(size, folder).files), size.peer_images))
    setting = peers.Setting(files, size.crop, size.batch_size, size.num_workers, device)
    peer = find_peer(name)(make_model(size.crop), setting)
    ready = ready_batches(peer, size.steps, device)
    runs: Runs = {
        "timer": lambda: peer.loop(islice(cycle(ready), size.steps)),
        "end_to_end": lambda: peer.loop(peer.loader),
    }
    return {what: _finishing(run, device) for what, run in runs.items()}


def find_peer(name: str) -> Callable[[nn.Module, peers.Setting], Peer]:
    """Raises ImportError where a peer's own package is not installed."""
    if "timm" in name:
        from benchmarks import timm_peer

        return timm_peer.timm_evaluation if name.startswith("evaluation") else timm_peer.timm_training
    own = {
        "d2l": peers.d2l,
        "torchvision": peers.torchvision_references,
        "evaluation_torchvision": peers.torchvision_evaluation,
    }
    return own[name]


def ready_batches(peer: Peer, at_most: int, device: torch.device) -> list[Batch]:
    """Whole batches on the host, pinned for CUDA; up to eight, so that memory is not the question."""
    batches: Iterable[Batch] = islice(peer.loader, min(at_most, 8))
    if device.type == "cuda":
        return [(images.pin_memory(), labels.pin_memory()) for images, labels in batches]
    return list(batches)


def _finishing(run: Callable[[], float], device: torch.device) -> Callable[[], float]:
    def finish() -> float:
        done = run()
        synchronize(device)
        return done

    return finish
