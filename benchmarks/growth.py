"""The rows on growth: an image's cost in a longer epoch, in smaller and larger batches, and on more processes.

As a program it is one of those processes: python -m benchmarks.growth SPLIT IMAGES CROP BATCH DEVICE OUT
"""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import ours
from benchmarks.record import Row, Rows, attempt
from benchmarks.timing import interleave
from benchmarks.workload import Size, Workload, chosen_images, make_model
from stages.shared.dataset import load_train_split
from stages.shared.distributed import launch, process_group, rank_and_world_size
from stages.shared.files import read_json, write_json

GROWTH = (1, 4, 16)
EPOCHS = 3  # the first warms up


def measure_growth(work: Workload, size: Size, folder: Path, device: torch.device, precision: torch.dtype) -> Rows:
    yield from attempt(("growth_images",), lambda: {"growth_images": images_row(work, size, device, precision)})
    yield from attempt(("growth_batch",), lambda: {"growth_batch": batch_row(work, size, device, precision)})
    yield from attempt(("growth_processes",), lambda: {"growth_processes": processes_row(size, folder, device)})


def images_row(work: Workload, size: Size, device: torch.device, precision: torch.dtype) -> Row:
    """Images per second of an epoch of 1x, 4x and 16x images; `spread` is how far an image's cost moves from that at 1x."""
    mine = ours.prepare(work.train, size, device, precision)
    epochs = {f"{times}x": ours.plan(work.train, times * size.growth_images, device) for times in GROWTH}
    runs = {name: lambda draws=draws: ours.run(mine.step, draws, size.batch_size) for name, draws in epochs.items()}
    rates = interleave(runs, max(2, size.rounds // 3), device)
    return {"rates": rates, "spread": _spread([rates[name]["median"] for name in epochs])}


def batch_row(work: Workload, size: Size, device: torch.device, precision: torch.dtype) -> Row:
    """Images per second in batches of half, once and twice the usual size."""
    runs = {}
    for batch_size in (size.batch_size // 2, size.batch_size, 2 * size.batch_size):
        mine = ours.prepare(work.train, replace(size, batch_size=batch_size), device, precision)
        draws = ours.plan(work.train, 2 * size.batch_size * size.steps, device)
        runs[f"batch {batch_size}"] = partial(ours.run, mine.step, draws, batch_size)
    rates = interleave(runs, max(2, size.rounds // 3), device)
    return {"rates": rates, "spread": _spread([rate["median"] for rate in rates.values()])}


def processes_row(size: Size, folder: Path, device: torch.device) -> Row:
    """Images per second of all processes together, each with its share of the threads or a GPU of its own."""
    rates = {}
    for number in size.processes:
        out = folder / f"processes-{number}.json"
        # A split of its own batches for each: the global batch stays the recipe's.
        words = [str(folder), str(size.growth_images * 2), str(size.crop), str(size.batch_size), device.type, str(out)]
        if number == 1:
            launch_one(words)
        else:
            launch("benchmarks.growth", words, number, device)
        rates[str(number)] = {"median": read_json(out)["examples_per_second"]}
    found = [rate["median"] for rate in rates.values()]
    return {"rates": rates, "spread": _spread(found) if len(found) > 1 else None, "cores": os.cpu_count()}


def launch_one(words: list[str]) -> None:
    import subprocess

    subprocess.run([sys.executable, "-m", "benchmarks.growth", *words], check=True)


def _spread(rates: list[float]) -> float:
    """The largest relative change of an image's cost from the first; 0.05 is 5 %."""
    return max(abs(rates[0] / rate - 1) for rate in rates)


def main(split_dir: str, images: str, crop: str, batch_size: str, device_name: str, out: str) -> None:
    split, side = load_train_split(Path(split_dir)), int(crop)
    chosen = chosen_images(int(images), len(split))
    settings: dict[str, Any] = {"crop": side, "epochs": EPOCHS, "batch_size": int(batch_size)}
    with process_group(torch.device(device_name)) as device:
        history = ours.fit_recipe(make_model(side), split, chosen, **settings, device=device, name="processes")
        if rank_and_world_size()[0] == 0:
            write_json(Path(out), {"examples_per_second": max(epoch.examples_per_second for epoch in history[1:])})


if __name__ == "__main__":
    main(*sys.argv[1:])
