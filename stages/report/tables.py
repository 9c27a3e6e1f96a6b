"""Tables that other stages and the sweeps leave behind, whatever their columns."""

import base64
from pathlib import Path
from typing import Any

from stages.shared.files import read_json


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
