"""Read tables and facts that stages and sweeps leave behind, whatever their columns and keys."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from masking import masked
from stages.shared.files import read_json

Fact = tuple[str, Any]


def read_table(path: Path) -> dict[str, Any] | None:
    """A table file (a list of rows, or a mapping with `rows`) as columns and rows; None when there is no file."""
    if not path.exists():
        return None
    content = read_json(path)
    rows = [fold_intervals(row) for row in (content if isinstance(content, list) else content.get("rows", []))]
    columns = list(dict.fromkeys(key for row in rows for key in row))  # in order of appearance
    return {"columns": columns, "rows": rows}


def fold_intervals(row: dict[str, Any]) -> dict[str, Any]:
    """`score`, `score_low` and `score_high` as one cell, `0.812 (0.804 to 0.819)`; one seed has no interval."""
    folded = dict(row)
    for name, value in row.items():
        low_key, high_key = f"{name}_low", f"{name}_high"
        if {low_key, high_key} <= row.keys():
            low, high = folded.pop(low_key), folded.pop(high_key)
            if all(isinstance(number, int | float) for number in (value, low, high)):
                folded[name] = f"{value:.3f} ({low:.3f} to {high:.3f})"
    return folded


def read_sweeps(folder: Path) -> list[dict[str, Any]]:
    """Each sweep that has left a table or a figure."""
    sweeps = []
    for path in sorted(folder.glob("*/")):
        figure, table = path / "figure.svg", read_table(path / "table.json")
        if figure.exists() or table:
            # As an image, not inline: whatever the file holds, no script of it runs.
            data = base64.b64encode(figure.read_bytes()).decode("ascii") if figure.exists() else None
            sweeps.append({"name": path.name, "table": table, "picture": data and f"data:image/svg+xml;base64,{data}"})
    return sweeps


def facts_of(path: Path, keys: Iterable[str] | None = None) -> list[Fact]:
    """A JSON file's scalars as (dotted key, value), those under `keys` only if given; empty when there is no file."""
    if not path.exists():
        return []
    values = read_json(path)
    return flatten(values if keys is None else {key: values[key] for key in keys if key in values})


def flatten(values: Any, prefix: str = "") -> list[Fact]:
    """Nested mappings as (dotted key, value); short lists on one line, longer ones as their length; URLs masked."""
    if isinstance(values, Mapping):
        return [
            fact for key, value in values.items() for fact in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(values, list | tuple):
        is_short = len(values) <= 12 and not any(isinstance(value, Mapping | list | tuple) for value in values)
        return [(prefix, ", ".join(map(str, values)) if is_short else f"{len(values)} entries")]
    return [(prefix, masked(values) if isinstance(values, str) else values)]
