"""Numbers that several stages report: probabilities, top-1, and how sure a proportion is."""

import numpy as np
from scipy import special, stats


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) float64 of logits (N, K), computed in float64 and without overflow."""
    return special.softmax(logits.astype(np.float64), axis=1)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1: the fraction of the N rows of logits (N, K) whose largest value is at labels (N,); ties take the first."""
    return float((logits.argmax(axis=1) == labels).mean())


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927), within [0, 1] and never of zero width; trials ≥ 1."""
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def relative_error(logits: np.ndarray, reference: np.ndarray) -> float:
    """max |Δlogit| / max |reference logit| of two (N, K): one scale for all, as an error relative to each logit is noise.

    Infinite where the shapes differ or a value is not finite.
    """
    if logits.shape != reference.shape or not np.isfinite(logits).all():
        return float("inf")
    scale = float(np.abs(reference).max()) or 1.0
    return float(np.abs(logits - reference.astype(np.float64)).max() / scale)
