"""Measure this machine: python -m benchmarks [--device cpu|cuda|auto] [--out DIR] [--quick] [--only GROUP …]."""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation import measure_evaluation
from benchmarks.growth import measure_growth
from benchmarks.record import RESULTS, Rows, results_path, write_row
from benchmarks.startup import measure_startup
from benchmarks.table import write_table
from benchmarks.training import measure_training
from benchmarks.workload import Size, choose_size, make_workload
from stages.shared.reproducibility import choose_device, choose_precision, describe_machine

GROUPS = ("training", "evaluation", "growth", "startup")


def main() -> None:
    arguments = parse_arguments()
    device = choose_device(arguments.device)
    precision = choose_precision("auto", device)
    size = choose_size(device, arguments.quick)
    path, about = results_path(arguments.out, device), describe_run(size, device, precision, arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        for name, row in measure(arguments.only, size, Path(folder), device, precision):
            write_row(path, about, "rows", name, row)
    print(write_table(arguments.out))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for cpu.json or cuda-<device>.json, and table.md"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run on tiny images; its numbers mean nothing")
    parser.add_argument("--only", nargs="+", default=GROUPS, choices=GROUPS)
    arguments = parser.parse_args()
    if arguments.quick and arguments.out == RESULTS:
        parser.error("--quick measures nothing worth keeping: give it an --out of its own")
    return arguments


def describe_run(size: Size, device: torch.device, precision: torch.dtype, quick: bool) -> dict[str, Any]:
    """Describe what the rows of one file have in common."""
    return {
        "machine": describe_machine(device),
        "precision": str(precision).removeprefix("torch."),
        "quick": quick,
        "size": asdict(size),
    }


def measure(groups: list[str], size: Size, folder: Path, device: torch.device, precision: torch.dtype) -> Rows:
    """Rows of table.py, by name, as they are measured."""
    work = make_workload(size, folder)
    measures: dict[str, Any] = {
        "training": lambda: measure_training(size, folder, device, precision),
        "evaluation": lambda: measure_evaluation(work, size, folder, device, precision),
        "growth": lambda: measure_growth(work, size, folder, device, precision),
        "startup": lambda: measure_startup(size, folder, device),
    }
    for group in groups:
        print(f"measuring {group} on {device.type}", flush=True)
        rows: Iterator[Any] = measures[group]()
        yield from rows


if __name__ == "__main__":
    main()
