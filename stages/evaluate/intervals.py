"""95 % intervals of the metrics that are no proportions: percentile bootstrap over the test images.

A resample is a row of weights: how often each image was drawn. All metrics are sums under these weights, so a thousand
resamples are a few matrix products instead of a thousand calls of the library. A test holds unit weights against it.
The ECE of a resample lies above that of the sample (repeated images look surer than they are): read its interval as wide.
"""

import warnings

import numpy as np
from scipy import sparse

from stages.evaluate.scores import POSITIVE, Predictions, confidence_bins

CHUNK = 2**22  # weights held at once: 32 MiB


def bootstrap_intervals(predictions: Predictions, *, bins: int, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Low and high end of each resampled score, (2,) or (2, K) float64; NaN where no resample defines it."""
    num_images = len(predictions.labels)
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // num_images)
    chunks = []
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        weights = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=size)
        chunks.append(resampled_scores(predictions, weights.astype(np.float64), bins=bins))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return {
            name: np.nanpercentile(np.concatenate([chunk[name] for chunk in chunks]), [2.5, 97.5], axis=0)
            for name in chunks[0]
        }


def resampled_scores(predictions: Predictions, weights: np.ndarray, *, bins: int) -> dict[str, np.ndarray]:
    """The scores of each resample, (B,), and `f1` per class, (B, K); `weights` (B, N), every row of sum N."""
    num_images = weights.shape[1]
    f1 = _f1(predictions, weights)  # (B, K)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        macro_f1 = np.nanmean(f1, axis=1)
    gaps = _sums(weights, confidence_bins(predictions, bins), bins, predictions.correct - predictions.confidences)
    return {
        "test_loss": weights @ predictions.losses / num_images,
        "macro_f1": macro_f1,
        "roc_auc": _roc_auc(predictions, weights),
        "ece": np.abs(gaps).sum(axis=1) / num_images,
        "f1": f1,
    }


def _f1(predictions: Predictions, weights: np.ndarray) -> np.ndarray:  # (B, K)
    num_classes = predictions.num_classes
    hits = _sums(weights, predictions.labels, num_classes, predictions.correct)
    actual = _sums(weights, predictions.labels, num_classes)
    predicted = _sums(weights, predictions.predicted, num_classes)
    with np.errstate(invalid="ignore"):
        return 2 * hits / (actual + predicted)


def _roc_auc(predictions: Predictions, weights: np.ndarray) -> np.ndarray:  # (B,)
    """The chance that a positive image scores above a negative one, equal scores counting half."""
    if predictions.log_odds is None:
        return np.full(len(weights), np.nan)
    scores, ranks = np.unique(predictions.log_odds, return_inverse=True)
    is_positive = predictions.labels == POSITIVE
    positives = _sums(weights, ranks, len(scores), is_positive)  # (B, distinct scores)
    negatives = _sums(weights, ranks, len(scores), ~is_positive)
    below = np.cumsum(negatives, axis=1) - negatives
    with np.errstate(invalid="ignore"):
        wins = (positives * (below + negatives / 2)).sum(axis=1)
        return wins / (positives.sum(axis=1) * negatives.sum(axis=1))


def _sums(weights: np.ndarray, keys: np.ndarray, num_keys: int, values: np.ndarray | None = None) -> np.ndarray:
    """(B, num_keys): for each resample, the weighted sum of `values` (ones by default) over the images of each key."""
    num_images = len(keys)
    values = np.ones(num_images) if values is None else values.astype(np.float64)
    return weights @ sparse.csr_array((values, (np.arange(num_images), keys)), shape=(num_images, num_keys))
