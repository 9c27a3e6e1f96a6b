"""Publish results beside a run's log, and tell people of its end."""

import base64
import json
from pathlib import Path
from typing import Any, cast

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.blocks.core import Block

COMPARISON, PARITY, PICTURE = "artifacts/comparison.json", "artifacts/parity.json", "artifacts/comparison.png"
MONITOR = "artifacts/monitor/report.json"


def notify(block: str, subject: str, body: str) -> None:
    """Send through a Prefect notification block; that it cannot be reached is no fault of the run's."""
    try:
        cast(Any, Block.load(block)).notify(body=body, subject=subject)
    except Exception as error:  # whatever its service raises
        get_run_logger().warning("the notification block %s could not be told: %s", block, error)


def stages(rows: list[dict[str, Any]]) -> None:
    """Publish what each stage did."""
    create_table_artifact(rows, key="stages", description="What each stage did, and for how many seconds")


def results(workspace: Path) -> None:
    """Publish what is there; a run of a few targets may have made none of it."""
    tables = {COMPARISON: "comparison", PARITY: "parity", MONITOR: "recent-pictures"}
    for path, key in ((workspace / name, key) for name, key in tables.items()):
        if path.exists():
            create_table_artifact(as_rows(json.loads(path.read_text("utf-8"))), key=key, description=str(path.name))
    picture = workspace / PICTURE
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()  # inline: the server may be another machine
        create_image_artifact(
            f"data:image/png;base64,{data}", key="comparison-picture", description="The recipes compared"
        )


def as_rows(value: Any) -> list[dict[str, Any]]:
    """A table: a list of objects is one row each; an object of objects is one row each, named; else key and value."""
    if isinstance(value, list):
        return [dict(_flat(row)) for row in value]
    for rows in value.values():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return as_rows(rows)
    return [{"name": name, "value": found} for name, found in _flat(value)]


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `[("a.b", 1)]`; lists are written out."""
    pairs: list[tuple[str, Any]] = []
    for key, found in value.items():
        if isinstance(found, dict):
            pairs += _flat(found, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", json.dumps(found) if isinstance(found, list) else found))
    return pairs
