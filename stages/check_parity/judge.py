"""Verdicts: one row a claim, and how far from the reference is too far."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stages.shared.metrics import softmax

PASSED, FAILED = "passed", "failed"
NO_DEVICE = "not run: no CUDA device"


@dataclass(frozen=True)
class Claim:
    runtime: str  # what executes, as `ONNX Runtime CUDA`
    precision: str
    subject: str  # the file or checkpoint judged
    check: str  # what is claimed of it

    @property
    def name(self) -> str:
        return f"{', '.join(word for word in (self.runtime, self.precision, self.subject) if word)}: {self.check}"


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
