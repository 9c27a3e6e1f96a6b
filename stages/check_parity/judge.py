"""Judge claims: one row each, how far from the reference is too far, and the table of all rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.shared.files import write_json, write_text
from stages.shared.metrics import relative_error, softmax

PASSED, FAILED = "passed", "failed"
NO_DEVICE = "not run: no CUDA device"


@dataclass(frozen=True)
class Claim:
    runtime: str  # what executes, as `ONNX Runtime CUDA`
    precision: str
    subject: str  # the file or checkpoint judged
    check: str  # what is claimed of it
    batch: int | None = None  # images in a timed run; None where nothing is timed
    mode: str = ""  # of the runtime, as `channels last`

    @property
    def name(self) -> str:
        words = (self.runtime, self.mode, self.precision, self.subject)
        return f"{', '.join(word for word in words if word)}: {self.check}"


@dataclass(frozen=True)
class Row:
    claim: Claim
    verdict: str  # passed, failed, or `not run: <why>`
    reason: str = ""
    max_error: float | None = None
    limit: float | None = None
    details: dict[str, Any] = field(default_factory=dict)  # numbers that no limit is set on

    def as_dict(self) -> dict[str, Any]:
        numbers = {"max_error": self.max_error, "limit": self.limit, **self.details}
        return {**asdict(self.claim), "verdict": self.verdict, "reason": self.reason, **numbers}


@dataclass(frozen=True)
class Distance:
    error: float  # max |Δlogit| / max |reference logit|; infinite where shapes differ or values are not finite
    probability: float  # max |Δp|
    flips: int  # images whose top-1 differs
    flip_margin: float  # the reference's largest margin among them, relative to max |reference logit|

    def as_dict(self) -> dict[str, Any]:
        return {"max_probability_error": _finite(self.probability), "top1_flips": self.flips}


def distance(logits: np.ndarray, reference: np.ndarray) -> Distance:
    """The distance of `logits` from `reference`, both (images, classes). One scale for all: per-logit relative error is noise."""
    if logits.shape != reference.shape or not np.isfinite(logits).all():
        return Distance(float("inf"), float("inf"), len(reference), float("inf"))
    reference = reference.astype(np.float64)
    scale = float(np.abs(reference).max()) or 1.0
    ordered = np.sort(reference, axis=1)
    flipped = logits.argmax(1) != reference.argmax(1)
    margins = (ordered[:, -1] - ordered[:, -2])[flipped]
    return Distance(
        error=relative_error(logits, reference),
        probability=float(np.abs(softmax(logits) - softmax(reference)).max()),
        flips=int(flipped.sum()),
        flip_margin=float(margins.max() / scale) if len(margins) else 0.0,
    )


def within(found: Distance, limit: float) -> bool:
    """A flipped top-1 is allowed where both classes may move by `limit` towards each other, and nowhere else."""
    return found.error <= limit and found.flip_margin <= 2 * limit


def judge(claim: Claim, found: Distance, limit: float, *, torch_error: float, torch_limit: float) -> Row:
    """A row on logits against float64; the reason says whether torch's own float32 is off as well."""
    error, details = _finite(found.error), found.as_dict()
    if within(found, limit):
        return Row(claim, PASSED, "", error, limit, details)
    off = f"error {found.error:.2g} against float64 is over the limit {limit:g}, {found.flips} top-1 flipped"
    if torch_error > torch_limit:
        guilty = (
            f"torch float32 is off too ({torch_error:.2g}): suspect the checkpoint or the reference, run export again"
        )
    else:
        guilty = (
            f"torch float32 is not ({torch_error:.2g}): {claim.runtime} or the weights in {claim.subject} are at fault"
        )
    return Row(claim, FAILED, f"{off}; {guilty}", error, limit, details)


def attempt(claim: Claim, make: Callable[[], list[Row]]) -> list[Row]:
    """`make`'s rows; an exception of a runtime becomes a failed row, so that the table is whole before the stage fails."""
    try:
        return make()
    except Exception as error:  # onnxruntime's and torch's exceptions share no base
        return [Row(claim, FAILED, f"{type(error).__name__}: {' '.join(str(error).split()):.400}")]


def not_run(claims: Iterable[Claim], why: str, detail: str = "") -> list[Row]:
    return [Row(claim, f"not run: {why}", detail) for claim in claims]


def unreadable(claims: Iterable[Claim]) -> list[Row]:
    return [Row(claim, FAILED, f"{claim.subject} cannot be read (see its file row)") for claim in claims]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def write_table(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """`path` (JSON, a DVC metric) and the same beside it as Markdown."""
    counts = Counter(row.verdict.split(":")[0] for row in rows)
    summary = {"num_passed": counts["passed"], "num_failed": counts["failed"], "num_not_run": counts["not run"]}
    errors = {row.claim.name: row.max_error for row in rows if row.max_error is not None and row.claim.batch is None}
    write_json(path, {**summary, **facts, "max_error": errors, "rows": [row.as_dict() for row in rows]})
    write_text(path.with_suffix(".md"), markdown(rows, summary, facts))


def markdown(rows: Sequence[Row], summary: dict[str, int], facts: dict[str, Any]) -> str:
    claims = [row for row in rows if row.claim.batch is None]
    timed = [row for row in rows if row.claim.batch is not None]
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
    runtime = ", ".join(word for word in (row.claim.runtime, row.claim.mode) if word)
    return f"| {runtime} | {row.claim.precision} | {row.claim.subject} | {row.claim.check} | {row.verdict} | {error} | {limit} | {remark} |"


def _timing(row: Row) -> str:
    numbers = " | ".join(str(row.details.get(name, "")) for name in ("p50_ms", "p99_ms", "images_per_second"))
    runtime = ", ".join(word for word in (row.claim.runtime, row.claim.mode) if word)
    return f"| {runtime} | {row.claim.precision} | {row.claim.check} | {row.verdict} | {numbers} |"
