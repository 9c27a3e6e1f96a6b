"""The rows on training: ours beside its own limits and the chip's, then beside each peer."""

import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import our_runs, peer_runs
from benchmarks.process import ContestantProcess
from benchmarks.record import Row, Rows, attempt
from benchmarks.roofline import H200, floor_seconds, measure_peaks, training_flops
from benchmarks.timing import interleave, ratio, summarize
from benchmarks.workload import Size

LIMITS = ("resident", "data_path", "roofline")


def measure_training(size: Size, folder: Path, device: torch.device, precision: torch.dtype) -> Rows:
    """The rows by name; see table.py."""
    on_cuda = device.type == "cuda"
    with ContestantProcess(our_runs, size, folder, device, precision, False) as ours:
        yield from attempt(LIMITS, partial(compare_with_own_limits, ours, size, device))
        for name in ("d2l", "torchvision", "timm") if on_cuda else ("d2l",):
            with ContestantProcess(peer_runs, name, size, folder, device) as peer:
                for what, rounds in (("timer", size.rounds), ("end_to_end", max(2, size.rounds // 2))):
                    row = f"{name}_{what}"
                    if name == "timm" and find_spec("timm") is None:
                        yield row, {"not_measured": "timm is not installed"}
                    else:
                        yield from attempt((row,), partial(compare_with_peer, name, what, rounds, ours, peer, device))
        if on_cuda:
            with ContestantProcess(our_runs, size, folder, device, precision, True) as compiled:
                yield from attempt(
                    ("compiled", "roofline_compiled"), partial(compare_compiled, compiled, ours, size, device)
                )


def compare_with_own_limits(ours: ContestantProcess, size: Size, device: torch.device) -> dict[str, Row]:
    """Our step beside the same step without a data path, the data path alone, and what the chip allows."""
    parts = ("steps", "resident", "data", "convolutions")
    rates = interleave({part: ours.run(part) for part in parts}, size.rounds, device)
    rates["ours"] = rates.pop("steps")
    return {
        "resident": _row(rates, "ours", "resident"),
        # Images/s of the step over those of its part: the part's share of the step's time.
        "data_path": _row(rates, "ours", "data"),
        "roofline": (
            over_floor(rates["ours"], size, measure_peaks(device))
            if device.type == "cuda"
            else over_convolutions(rates, size)
        ),
    }


def compare_with_peer(
    name: str, what: str, rounds: int, ours: ContestantProcess, peer: ContestantProcess, device: torch.device
) -> dict[str, Row]:
    """One row: from a batch on the host to its loss (timer), or end to end.

    Ours has no batch on the host: its cropping counts in both, and it reads each loss only where d2l's timer needs it.
    """
    rates = interleave({"ours": ours.run(what), name: peer.run(what)}, rounds, device)
    return {f"{name}_{what}": _row(rates, "ours", name)}


def compare_compiled(
    compiled: ContestantProcess, ours: ContestantProcess, size: Size, device: torch.device
) -> dict[str, Row]:
    """Our step compiled beside the default, and after how many steps the time that compiling takes is won back."""
    compiled.run("data")()  # so that what is timed next is the model alone
    start = time.perf_counter()
    compiled.run("steps")()
    seconds = time.perf_counter() - start
    rates = interleave({"compiled": compiled.run("steps"), "ours": ours.run("steps")}, size.rounds, device)
    floor = over_floor(rates["compiled"], size, measure_peaks(device))
    pays = when_it_pays(seconds, rates, size.batch_size)
    return {"compiled": {**_row(rates, "compiled", "ours"), **pays}, "roofline_compiled": floor}


def when_it_pays(seconds: float, rates: dict[str, dict[str, Any]], batch_size: int) -> dict[str, float | None]:
    """The seconds that compiling takes, and the steps that win them back; None where a compiled step is not faster."""
    saved = batch_size / rates["ours"]["median"] - batch_size / rates["compiled"]["median"]  # seconds a step
    return {"compile_seconds": seconds, "pays_after_steps": seconds / saved if saved > 0 else None}


def over_floor(rate: dict[str, Any], size: Size, peaks: dict[str, float]) -> Row:
    """Our rate over the one that this device's measured peaks allow; beside it what an H200 would allow."""
    allowed = {
        name: 1 / floor_seconds(size.crop, size.batch_size, peak["flops"], peak["bytes"])
        for name, peak in (("this device", peaks), ("h200", H200))
    }
    return {
        "rates": {"ours": rate},
        "peaks": peaks,
        "allowed": allowed,
        "ratio": rate["median"] / allowed["this device"],
    }


def over_convolutions(rates: dict[str, dict[str, Any]], size: Size) -> Row:
    """FLOP/s of our whole step over those of 3x3 convolutions alone."""
    flops = training_flops(size.crop)
    step = summarize([images * flops for images in rates["ours"]["rounds"]])
    measured = {"ours": rates["ours"], "step, FLOP/s": step, "convolutions, FLOP/s": rates["convolutions"]}
    return {"rates": measured, **ratio(step, rates["convolutions"])}


def _row(rates: dict[str, dict[str, Any]], first: str, second: str) -> Row:
    return {"rates": {first: rates[first], second: rates[second]}, **ratio(rates[first], rates[second])}
