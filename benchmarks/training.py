"""The rows on training: ours beside each peer, beside our own step without a data path, and beside the chip."""

from collections.abc import Iterable
from itertools import cycle, islice
from typing import Any

import torch

from benchmarks import ours, peers
from benchmarks.peers import Batch, Way
from benchmarks.roofline import H200, convolutions, floor_seconds, measure_peaks, training_flops
from benchmarks.timing import interleave, ratio, summarize
from benchmarks.workload import Size, Workload, make_model
from stages.shared.sampling import steps

Row = dict[str, Any]


def measure_training(work: Workload, size: Size, device: torch.device, precision: torch.dtype) -> dict[str, Row]:
    """The rows by name; see table.py."""
    mine = ours.prepare(work.train, size, device, precision)
    rows = compare_with_peer("d2l", d2l_way(work, size, device), mine, work, size, device)
    rows |= compare_with_own_limits(mine, work, size, device, precision)
    if device.type == "cuda":
        files = list(islice(cycle(work.files), size.peer_images))
        for name, make in (("torchvision", peers.torchvision_references), ("timm", peers.timm)):
            way = make(files, make_model(size.crop), size.crop, size.batch_size, size.num_workers, device)
            rows |= compare_with_peer(name, way, mine, work, size, device)
        rows["compiled"] = compare_with_compiled(mine, work, size, device, precision)
    return rows


def d2l_way(work: Workload, size: Size, device: torch.device) -> Way:
    files = list(islice(cycle(work.files), size.peer_images))
    return peers.d2l(files, make_model(size.crop), size.crop, size.batch_size, device)


def compare_with_peer(
    name: str, way: Way, mine: ours.Ours, work: Workload, size: Size, device: torch.device
) -> dict[str, Row]:
    """Two rows: from a batch on the host to its loss, and end to end.

    Ours has no batch on the host: its cropping counts in both, and it reads each loss only where d2l's timer needs it.
    """
    ready = ready_batches(way.loader, size.steps)
    draws = ours.plan(work.train, size.steps * size.batch_size, device)
    epoch = ours.plan(work.train, size.own_images, device)
    timer = interleave(
        {
            "ours": lambda: ours.run_reading_losses(mine, steps(draws, size.batch_size)),
            name: lambda: way.train(islice(cycle(ready), size.steps)),
        },
        size.rounds,
        device,
    )
    whole = interleave(
        {"ours": lambda: ours.run(mine.step, epoch, size.batch_size), name: lambda: way.train(way.loader)},
        max(2, size.rounds // 2),
        device,
    )
    return {f"{name}_timer": _row(timer, "ours", name), f"{name}_end_to_end": _row(whole, "ours", name)}


def ready_batches(loader: Iterable[Batch], at_most: int) -> list[Batch]:
    """Whole batches on the host, pinned where that helps; up to eight, so that memory is not the question."""
    batches = list(islice(loader, min(at_most, 8)))
    return [
        (images.pin_memory(), labels.pin_memory()) if torch.cuda.is_available() else (images, labels)
        for images, labels in batches
    ]


def compare_with_own_limits(
    mine: ours.Ours, work: Workload, size: Size, device: torch.device, precision: torch.dtype
) -> dict[str, Row]:
    """Our step beside the same step without a data path, the data path alone, and what the chip allows."""
    draws = ours.plan(work.train, size.steps * size.batch_size, device)
    rates = interleave(
        {
            "ours": lambda: ours.run(mine.step, draws, size.batch_size),
            "resident": lambda: ours.run(mine.resident_step, draws, size.batch_size),
            "data": lambda: ours.run(mine.crop, draws, size.batch_size),
            "convolutions": convolutions(size.crop, size.batch_size, precision, device),  # FLOP/s
        },
        size.rounds,
        device,
    )
    on_cuda = device.type == "cuda"
    return {
        "resident": _row(rates, "ours", "resident"),
        "data_path": _row(
            rates, "ours", "data"
        ),  # images/s of the step over those of its part: the part's share of its time
        "roofline": over_roofline(rates["ours"], size, device) if on_cuda else over_convolutions(rates, size),
    }


def over_roofline(rate: dict[str, Any], size: Size, device: torch.device) -> Row:
    """Our rate over the one that an H200 allows, and over the one that this device's own peaks allow."""
    peaks = measure_peaks(device)
    allowed = {
        name: 1 / floor_seconds(size.crop, size.batch_size, peak["flops"], peak["bytes"])
        for name, peak in (("h200", H200), ("this device", peaks))
    }
    return {"rates": {"ours": rate}, "peaks": peaks, "allowed": allowed, "ratio": rate["median"] / allowed["h200"]}


def over_convolutions(rates: dict[str, dict[str, Any]], size: Size) -> Row:
    """FLOP/s of our whole step over those of 3x3 convolutions alone."""
    flops = training_flops(size.crop)
    step = summarize([images * flops for images in rates["ours"]["rounds"]])
    measured = {"ours": rates["ours"], "step, FLOP/s": step, "convolutions, FLOP/s": rates["convolutions"]}
    return {"rates": measured, **ratio(step, rates["convolutions"])}


def compare_with_compiled(
    mine: ours.Ours, work: Workload, size: Size, device: torch.device, precision: torch.dtype
) -> Row:
    """The graph of compiled kernels over the graph of eager ones: what runtime.step compile would bring."""
    compiled = ours.prepare(work.train, size, device, precision, compiled=True)
    draws = ours.plan(work.train, size.steps * size.batch_size, device)
    contestants = {
        "compiled": lambda: ours.run(compiled.step, draws, size.batch_size),
        "ours": lambda: ours.run(mine.step, draws, size.batch_size),
    }
    return _row(interleave(contestants, size.rounds, device), "compiled", "ours")


def _row(rates: dict[str, dict[str, Any]], first: str, second: str) -> Row:
    return {"rates": {first: rates[first], second: rates[second]}, **ratio(rates[first], rates[second])}
