"""The results file of one device: its rows, each written as soon as it is measured."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from stages.shared.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]  # what table.py shows of it, or {"failed": reason}, or {"not_measured": reason}
Rows = Iterator[tuple[str, Row]]  # by name, in the order in which they are measured


def results_path(folder: Path, device: torch.device) -> Path:
    """cpu.json, or cuda-<name of the device>.json"""
    if device.type == "cpu":
        return folder / "cpu.json"
    name = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ")
    return folder / f"cuda-{re.sub('[^a-z0-9]+', '-', name)}.json"


def attempt(names: tuple[str, ...], measure: Callable[[], Mapping[str, Row]]) -> Rows:
    """The rows `names`, as `measure` returns them; where it fails, the reason is what each of them says."""
    try:
        rows = measure()
    except Exception as error:
        print(f"{', '.join(names)}: {error}", flush=True)
        rows = {name: {"failed": f"{type(error).__name__}: {error}"} for name in names}
    yield from rows.items()


def write_row(path: Path, about: Mapping[str, Any], section: str, name: str, row: Row) -> None:
    """Add one row to the file. Earlier rows stay where they were measured on this machine, at this size, by these versions."""
    today = date.today().isoformat()
    earlier = read_json(path) if path.exists() else {}
    if any(earlier.get(key) != json.loads(json.dumps(value)) for key, value in about.items()):  # JSON has no tuples
        earlier = {}
    rows = {**earlier.get(section, {}), name: {**row, "date": today}}
    write_json(path, {**earlier, **about, section: rows})
