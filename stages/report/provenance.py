"""Where an experiment's numbers come from: its params, and what each stage wrote down about itself."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from masking import masked
from stages.shared.files import read_json

Fact = tuple[str, Any]


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
