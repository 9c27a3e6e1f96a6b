"""Verdicts: one row a claim, and how far from the reference is too far."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stages.shared.metrics import softmax

PASSED, FAILED = "passed", "failed"
NO_DEVICE = "not run: no CUDA device"


@dataclass(frozen=True)
class Row:
    runtime: str  # what executed, as `ONNX Runtime CUDA`
    precision: str
    subject: str  # the file or checkpoint judged
    check: str  # what was claimed of it
    verdict: str  # passed, failed, or `not run: <why>`
    reason: str = ""
    max_error: float | None = None
    limit: float | None = None
    details: dict[str, Any] = field(default_factory=dict)  # numbers that no limit is set on

    @property
    def name(self) -> str:
        return f"{self.runtime}, {self.precision}, {self.subject}: {self.check}"

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return values | values.pop("details")


@dataclass(frozen=True)
class Distance:
    error: float  # max |Δlogit| / max |reference logit|; infinite where shapes differ or values are not finite
    probability: float  # max |Δp|
    flips: int  # images whose top-1 differs
    flip_margin: float  # the reference's largest margin among them, relative to max |reference logit|

    def as_dict(self) -> dict[str, Any]:
        return {"max_probability_error": _finite(self.probability), "top1_flips": self.flips}


def distance(logits: np.ndarray, reference: np.ndarray) -> Distance:
    """How far `logits` are from `reference`, both (images, classes). One scale for all: per-logit relative error is noise."""
    if logits.shape != reference.shape or not np.isfinite(logits).all():
        return Distance(float("inf"), float("inf"), len(reference), float("inf"))
    reference = reference.astype(np.float64)
    scale = float(np.abs(reference).max()) or 1.0
    ordered = np.sort(reference, axis=1)
    flipped = logits.argmax(1) != reference.argmax(1)
    margins = (ordered[:, -1] - ordered[:, -2])[flipped]
    return Distance(
        error=float(np.abs(logits - reference).max() / scale),
        probability=float(np.abs(softmax(logits) - softmax(reference)).max()),
        flips=int(flipped.sum()),
        flip_margin=float(margins.max() / scale) if len(margins) else 0.0,
    )


def within(found: Distance, limit: float) -> bool:
    """A flipped top-1 is allowed where both classes may move by `limit` towards each other, and nowhere else."""
    return found.error <= limit and found.flip_margin <= 2 * limit


def judge(found: Distance, limit: float, *, torch_error: float, torch_limit: float, **row: str) -> Row:
    """A row on logits against float64; the reason says whether torch's own float32 is off as well."""
    numbers: dict[str, Any] = {"max_error": _finite(found.error), "limit": limit, "details": found.as_dict()}
    if within(found, limit):
        return Row(**row, verdict=PASSED, **numbers)
    off = f"error {found.error:.2g} against float64 is over the limit {limit:g}, {found.flips} top-1 flipped"
    if torch_error > torch_limit:
        guilty = f"torch float32 is off as well ({torch_error:.2g}): suspect the checkpoint or the reference, run export again"
    else:
        guilty = f"torch float32 is not ({torch_error:.2g}): {row['runtime']} or {row['subject']} is at fault"
    return Row(**row, verdict=FAILED, reason=f"{off}; {guilty}", **numbers)


def attempt(make: Callable[[], list[Row]], **row: str) -> list[Row]:
    """`make`'s rows; an exception of a runtime becomes a failed row, so that the table is complete before the stage fails."""
    try:
        return make()
    except Exception as error:  # onnxruntime's and torch's exceptions share no base
        return [Row(**row, verdict=FAILED, reason=f"{type(error).__name__}: {' '.join(str(error).split()):.400}")]


def not_run(rows: list[dict[str, str]], why: str, detail: str = "") -> list[Row]:
    return [Row(**row, verdict=f"not run: {why}", reason=detail) for row in rows]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
