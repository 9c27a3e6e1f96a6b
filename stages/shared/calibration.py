"""Temperature scaling: one number that makes a classifier as sure of its answers as it is right.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017. A prior keeps the temperature near 1 where there are few
held-out images: twenty that were all right would otherwise make it 0.
"""

import numpy as np
from scipy import optimize, special

LOWEST, HIGHEST = 0.05, 20.0  # temperatures
PRIOR = 0.25  # standard deviation of the temperature's logarithm, before anything is known


def fit_temperature(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The temperature that logits (n, classes) of images not trained on are to be divided by; 1 where no other is better.

    `labels` int64 (n,); `weights` (n,) say how much each image counts, all alike by default. The weighted log-loss of these
    images is never larger with it than without.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    num_effective = weights.sum() ** 2 / (weights**2).sum()  # images of equal weight that would tell as much (Kish)

    def objective(log_temperature: float) -> float:
        prior = log_temperature**2 / (2 * PRIOR**2)
        return num_effective * log_loss(logits / np.exp(log_temperature), labels, weights) + prior

    found = optimize.minimize_scalar(objective, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    temperature = float(np.exp(found.x))
    better = log_loss(logits / temperature, labels, weights) < log_loss(logits, labels, weights)
    return temperature if better else 1.0


def log_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean cross-entropy, nats, of logits (n, classes) for `labels` (n,), each image counting as `weights` (n,) say."""
    losses = -special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))


def balanced_weights(labels: np.ndarray) -> np.ndarray:
    """(n,) float64 of mean 1: as much for each class of `labels` int64 (n,) that occurs, shared evenly by its images."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (len(labels) / (len(classes) * counts))[inverse]
