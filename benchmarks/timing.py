"""Medians of interleaved rounds: whatever slows the machine for a while slows every contestant alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    contestants: Mapping[str, Callable[[], float]], rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Run every contestant once unmeasured, then `rounds` times in turn; each call returns how much it worked off (images).

    Returns for each its images per second: `median`, `low`, `high` and `rounds`.
    """
    names = list(contestants)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        contestants[name]()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            synchronize(device)
            start = time.perf_counter()
            done = contestants[name]()
            synchronize(device)
            rates[name].append(done / (time.perf_counter() - start))
    return {name: summarize(values) for name, values in rates.items()}


def summarize(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": values}


def ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Ours over theirs, round by round: the median and the range of the rounds' ratios."""
    ratios = [a / b for a, b in zip(ours["rounds"], theirs["rounds"], strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
