"""The rows on training: ours beside each peer, beside our own step without a data path, and beside the chip."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.apart import Apart
from benchmarks.contestants import our_runs, peer_runs
from benchmarks.roofline import H200, floor_seconds, measure_peaks, training_flops
from benchmarks.timing import interleave, ratio, summarize
from benchmarks.workload import Size

Row = dict[str, Any]


def measure_training(size: Size, folder: Path, device: torch.device, precision: torch.dtype) -> dict[str, Row]:
    """The rows by name; see table.py."""
    with Apart(our_runs, size, folder, device, precision, False) as ours:
        names = ("d2l", "torchvision", "timm") if device.type == "cuda" else ("d2l",)
        rows: dict[str, Row] = {}
        for name in names:
            with Apart(peer_runs, name, size, folder, device) as peer:
                rows |= compare_with_peer(name, ours, peer, size, device)
        rows |= compare_with_own_limits(ours, size, device)
        if device.type == "cuda":
            with Apart(our_runs, size, folder, device, precision, True) as compiled:
                contestants = {"compiled": compiled.run("steps"), "ours": ours.run("steps")}
                rows["compiled"] = _row(interleave(contestants, size.rounds, device), "compiled", "ours")
    return rows


def compare_with_peer(name: str, ours: Apart, peer: Apart, size: Size, device: torch.device) -> dict[str, Row]:
    """Two rows: from a batch on the host to its loss, and end to end.

    Ours has no batch on the host: its cropping counts in both, and it reads each loss only where d2l's timer needs it.
    """
    rows = {}
    for what, rounds in (("timer", size.rounds), ("end_to_end", max(2, size.rounds // 2))):
        rates = interleave({"ours": ours.run(what), name: peer.run(what)}, rounds, device)
        rows[f"{name}_{what}"] = _row(rates, "ours", name)
    return rows


def compare_with_own_limits(ours: Apart, size: Size, device: torch.device) -> dict[str, Row]:
    """Our step beside the same step without a data path, the data path alone, and what the chip allows."""
    parts = ("steps", "resident", "data", "convolutions")
    rates = interleave({part: ours.run(part) for part in parts}, size.rounds, device)
    rates["ours"] = rates.pop("steps")
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


def _row(rates: dict[str, dict[str, Any]], first: str, second: str) -> Row:
    return {"rates": {first: rates[first], second: rates[second]}, **ratio(rates[first], rates[second])}
