"""Two-sample tests: were these drawn from where those were? A distance, and how often chance reaches it.

Of descriptions the squared maximum mean discrepancy (Gretton et al., A Kernel Two-Sample Test, 2012) of two samples, with a Gaussian
kernel as wide as the median distance; of answers the chi-square of their numbers. The distribution without any difference is that over
random divisions of the pooled sample. So a test raises a false alarm in at most the share of nights that is asked of it, whatever the
pictures; that of the answers in about so many, as training images are answered by networks that had not seen them, recent ones by
the final network.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

LEVEL = 0.015  # false alarms in 1.5 % of the nights, of all tests together
NUM_DIVISIONS = 2000


class Comparison(NamedTuple):
    distance: float  # squared maximum mean discrepancy, 0 to 2
    usual: float  # a share LEVEL of random divisions is farther apart than this
    p_value: float
    witness: np.ndarray  # (m,): how much more each recent image is like the recent ones than like the training images


def compare_samples(training: np.ndarray, recent: np.ndarray, seed: int) -> Comparison:
    """Descriptions (n, d) of training images and (m, d) of recent ones; memory grows with (n + m) squared."""
    kernel, num = kernel_of(np.concatenate([training, recent])), len(training)
    is_recent = np.arange(len(kernel)) >= num
    observed = discrepancies(kernel, is_recent[None])[0]
    generator = np.random.default_rng(seed)
    divisions = generator.permuted(np.tile(is_recent, (NUM_DIVISIONS, 1)), axis=1)
    by_chance = discrepancies(kernel, divisions)
    return Comparison(
        distance=float(observed),
        usual=float(np.quantile(by_chance, 1 - LEVEL)),
        p_value=float((1 + (by_chance >= observed).sum()) / (1 + NUM_DIVISIONS)),
        witness=kernel[num:, num:].mean(axis=1) - kernel[num:, :num].mean(axis=1),
    )


def compare_counts(training: np.ndarray, recent: np.ndarray, seed: int) -> float:
    """The p-value of a chi-square test of how often each class was answered, int64 (classes,) each; memory does not grow with them."""
    pooled = training + recent
    pooled, recent = pooled[pooled > 0], recent[pooled > 0]
    expected = pooled * (recent.sum() / pooled.sum())
    generator = np.random.default_rng(seed)
    divisions = generator.multivariate_hypergeometric(pooled, recent.sum(), NUM_DIVISIONS)

    def distances(counts: np.ndarray) -> np.ndarray:
        return np.asarray(((counts - expected) ** 2 / expected).sum(axis=-1))  # the other row adds a constant factor

    as_far = distances(divisions) >= distances(recent) - 1e-9
    return float((1 + as_far.sum()) / (1 + NUM_DIVISIONS))


def kernel_of(descriptions: np.ndarray) -> np.ndarray:
    """(n, n) float32: 1 for equal ones, less the more they differ."""
    squared = cdist(descriptions, descriptions, "sqeuclidean").astype(np.float32)
    width = np.median(squared[np.triu_indices(len(squared), 1)]) or 1.0
    return np.exp(-squared / width)


def discrepancies(kernel: np.ndarray, divisions: np.ndarray) -> np.ndarray:
    """(k,) for boolean divisions (k, n) of the n images: the squared distance between the means of the two parts."""
    signs = np.where(divisions, 1 / divisions.sum(axis=1, keepdims=True), -1 / (~divisions).sum(axis=1, keepdims=True))
    signs = signs.astype(np.float32)
    return np.einsum("kn,kn->k", signs @ kernel, signs)
