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
