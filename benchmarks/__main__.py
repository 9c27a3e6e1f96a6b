"""Measure this machine: python -m benchmarks [--device cpu|cuda|auto] [--out DIR] [--quick] [--only ROWS]."""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation import measure_evaluation
from benchmarks.growth import measure_growth
from benchmarks.startup import measure_startup
from benchmarks.table import render
from benchmarks.training import measure_training
from benchmarks.workload import Size, Workload, choose_size, make_workload
from stages.shared.files import read_json, write_json, write_text
from stages.shared.reproducibility import choose_device, choose_precision, describe_machine

RESULTS = Path(__file__).parent / "results"
GROUPS = ("training", "evaluation", "growth", "startup")


def main() -> None:
    arguments = parse_arguments()
    device = choose_device(arguments.device)
    precision = choose_precision("auto", device)
    size = choose_size(device, arguments.quick)
    result = {
        "machine": describe_machine(device),
        "precision": str(precision).removeprefix("torch."),
        "quick": arguments.quick,
        "size": asdict(size),
    }
    path = arguments.out / f"{device.type}.json"
    with tempfile.TemporaryDirectory() as folder:
        work = make_workload(size, Path(folder))
        for group in arguments.only:
            print(f"measuring {group} on {device.type}", flush=True)
            rows = measure(group, work, size, Path(folder), device, precision)
            write_json(
                path, {**result, "date": date.today().isoformat(), "rows": {**rows_so_far(path, result), **rows}}
            )
    table = render(*(stored(arguments.out / f"{kind}.json") for kind in ("cuda", "cpu")))
    write_text(arguments.out / "table.md", table)
    print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for <device>.json and table.md")
    parser.add_argument("--quick", action="store_true", help="a smoke run on tiny images; its numbers mean nothing")
    parser.add_argument("--only", nargs="+", default=GROUPS, choices=GROUPS)
    arguments = parser.parse_args()
    if arguments.quick and arguments.out == RESULTS:
        parser.error("--quick measures nothing worth keeping: give it an --out of its own")
    return arguments


def measure(
    group: str, work: Workload, size: Size, folder: Path, device: torch.device, precision: torch.dtype
) -> dict[str, Any]:
    """Rows of table.py, by name."""
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "training": lambda: measure_training(size, folder, device, precision),
        "evaluation": lambda: measure_evaluation(work, size, device, precision),
        "growth": lambda: measure_growth(work, size, folder, device, precision),
        "startup": lambda: measure_startup(size, folder, device),
    }
    return measures[group]()


def rows_so_far(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier run of other groups, where it was on this machine and at this size."""
    earlier = stored(path)
    # JSON has no tuples
    same = earlier and all(earlier.get(key) == json.loads(json.dumps(value)) for key, value in result.items())
    return earlier["rows"] if same else {}


def stored(path: Path) -> Any:
    return read_json(path) if path.exists() else None


if __name__ == "__main__":
    main()
