"""parity.json and parity.md: every row, whatever its verdict."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.check_parity.judge import Row
from stages.shared.files import write_json, write_text


def write_table(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """`path` (JSON, a DVC metric) and the same beside it as Markdown."""
    counts = Counter(row.verdict.split(":")[0] for row in rows)
    summary = {"num_passed": counts["passed"], "num_failed": counts["failed"], "num_not_run": counts["not run"]}
    errors = {
        row.claim.name: row.max_error
        for row in rows
        if row.max_error is not None and not row.claim.check.startswith("latency")
    }
    write_json(path, {**summary, **facts, "max_error": errors, "rows": [row.as_dict() for row in rows]})
    write_text(path.with_suffix(".md"), markdown(rows, summary, facts))


def markdown(rows: Sequence[Row], summary: dict[str, int], facts: dict[str, Any]) -> str:
    claims = [row for row in rows if not row.claim.check.startswith("latency")]
    timed = [row for row in rows if row.claim.check.startswith("latency")]
    lines = [
        "# Parity",
        "",
        f"{summary['num_passed']} passed, {summary['num_failed']} failed, {summary['num_not_run']} not run. "
        f"Model `{facts['model_digest']}`. Machine: {', '.join(f'{key} {value}' for key, value in facts['machine'].items())}.",
        "",
        "Errors are max |Δlogit| / max |reference logit| against float64 unless the check says otherwise.",
        "",
        "| runtime | precision | subject | check | verdict | error | limit | remark |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_claim(row) for row in claims),
        "",
        "| runtime | precision | check | verdict | p50 ms | p99 ms | images/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_timing(row) for row in timed),
    ]
    return "\n".join(lines) + "\n"


def _claim(row: Row) -> str:
    error, limit = ("" if value is None else f"{value:.2g}" for value in (row.max_error, row.limit))
    remark = row.reason.replace("|", "\\|")
    return f"| {row.claim.runtime} | {row.claim.precision} | {row.claim.subject} | {row.claim.check} | {row.verdict} | {error} | {limit} | {remark} |"


def _timing(row: Row) -> str:
    numbers = " | ".join(str(row.details.get(name, "")) for name in ("p50_ms", "p99_ms", "images_per_second"))
    return f"| {row.claim.runtime} | {row.claim.precision} | {row.claim.check} | {row.verdict} | {numbers} |"
