"""Summarise parity as one matrix, runtime by precision: verdict, error, speed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.shared.files import read_json

PRECISIONS = ("fp32", "tf32", "fp16", "int8")
Row = Mapping[str, Any]  # of parity.json


@dataclass(frozen=True)
class Cell:
    """All that is known of one runtime in one precision."""

    verdict: str  # failed where any row did, else passed where any row did, else not run
    reason: str  # why it failed, or was not run
    error: float | None  # of the row that came nearest to its limit
    limit: float | None
    milliseconds: float | None  # of one image, in the fastest mode
    images_per_second: float | None  # in the fastest mode and batch


@dataclass(frozen=True)
class Parity:
    counts: Mapping[str, int]  # rows by verdict: passed, failed, not run
    precisions: Sequence[str]
    runtimes: Mapping[str, Mapping[str, Cell]]  # runtime -> precision -> cell
    failed: Sequence[Row]
    details: Mapping[str, Sequence[Row]]  # runtime -> its rows


def read_parity(path: Path) -> Parity | None:
    """The rows that check_parity wrote; None where it did not run."""
    return summarize_parity(read_json(path)["rows"]) if path.exists() else None


def summarize_parity(rows: Sequence[Row]) -> Parity:
    details: dict[str, list[Row]] = {}
    for row in rows:
        details.setdefault(row["runtime"], []).append(row)
    runtimes = {}
    for runtime, own in details.items():
        cells = {
            precision: summarize_cell([row for row in own if row["precision"] == precision]) for precision in PRECISIONS
        }
        found = {precision: cell for precision, cell in cells.items() if cell}
        if found:
            runtimes[runtime] = found
    return Parity(
        counts={verdict: sum(_verdict(row) == verdict for row in rows) for verdict in ("passed", "failed", "not run")},
        precisions=[precision for precision in PRECISIONS if any(precision in cells for cells in runtimes.values())],
        runtimes=runtimes,
        failed=[row for row in rows if _verdict(row) == "failed"],
        details=details,
    )


def summarize_cell(rows: Sequence[Row]) -> Cell | None:
    if not rows:
        return None
    verdicts = {_verdict(row): row for row in reversed(rows)}  # the first row of each
    verdict = next(name for name in ("failed", "passed", "not run") if name in verdicts)
    judged = [row for row in rows if row["max_error"] is not None and row["limit"]]
    worst = max(judged, key=lambda row: float(row["max_error"] / row["limit"]), default=None)
    first = verdicts[verdict]
    reason = first["verdict"].removeprefix("not run: ") if verdict == "not run" else first["reason"]
    return Cell(
        verdict=verdict,
        reason="" if verdict == "passed" else reason,
        error=worst["max_error"] if worst else None,
        limit=worst["limit"] if worst else None,
        milliseconds=min(_numbers(rows, "p50_ms", batch=1), default=None),
        images_per_second=max(_numbers(rows, "images_per_second"), default=None),
    )


def _numbers(rows: Iterable[Row], key: str, batch: int | None = None) -> list[float]:
    return [row[key] for row in rows if key in row and batch in (None, row["batch"])]


def _verdict(row: Row) -> str:
    return str(row["verdict"]).partition(":")[0]
