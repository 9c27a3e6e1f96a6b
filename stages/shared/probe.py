"""A probe: a regularised logistic head on frozen features, its strength chosen by cross-validation.

On some hundreds of images it rivals fine-tuning at a tenth of the time. It serves as a yardstick, as the head that
fine-tuning starts from and, because each image is judged by a head that never saw it, as a check of the labels.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from stages.shared.calibration import balanced_weights, fit_temperature, log_loss

# Inverse strengths C on standardised features, the strongest penalty first.
STRENGTHS = tuple(10.0 ** (half / 2) for half in range(-10, 3))
PATIENCE = 2  # strengths in a row that are no better than the best end the search
LEFT_OUT = -1  # the fold of an image that takes no part


@dataclass(frozen=True)
class Probe:
    weight: np.ndarray  # (classes, d) float32, for features as they come: the standardisation is folded in
    bias: np.ndarray  # (classes,) float32
    logits: np.ndarray  # (n, classes) float32, out of fold, not calibrated
    temperature: float  # to divide logits by, fitted on `logits`
    strength: float  # the inverse strength C chosen
    loss: float  # log-loss of `logits` before calibration, weighted as the fit was


def fit_probe(
    crop: np.ndarray,
    mirror: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    *,
    balanced: bool = False,
) -> Probe:
    """The head for features `crop` of n images and `mirror` of the same images mirrored, float32 (n, d) each.

    `labels` and `folds` are int64 (n,). Images of fold -1 take no part, so their logits are those of the head itself. A
    mirrored image is in its image's fold; the strength is chosen on the crops. `balanced` lets every class count alike.
    Raises ValueError where fewer than two folds or two classes are left.
    """
    kept = folds != LEFT_OUT
    _check(labels[kept], folds[kept])
    weights = balanced_weights(labels[kept]) if balanced else None
    parts = [
        _Part(crop, mirror, labels, kept & (folds != fold), num_classes, balanced) for fold in np.unique(folds[kept])
    ]
    outside = [folds == fold for fold in np.unique(folds[kept])]

    best, since = (np.inf, STRENGTHS[0], np.empty(0)), 0
    for strength in STRENGTHS:
        logits = np.zeros((len(labels), num_classes), dtype=np.float32)
        for part, rows in zip(parts, outside, strict=True):
            weight, bias = part.fit(strength)
            logits[rows] = crop[rows] @ weight.T + bias
        loss = log_loss(logits[kept], labels[kept], weights)
        best, since = ((loss, strength, logits), 0) if loss < best[0] else (best, since + 1)
        if since == PATIENCE:
            break

    loss, strength, logits = best
    weight, bias = _Part(crop, mirror, labels, kept, num_classes, balanced).fit(strength)
    logits[~kept] = crop[~kept] @ weight.T + bias
    return Probe(weight, bias, logits, fit_temperature(logits[kept], labels[kept], weights), strength, loss)


class _Part:
    """A part of the images, for which heads are fitted at one strength after the other, each from where the last ended."""

    def __init__(
        self,
        crop: np.ndarray,
        mirror: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        num_classes: int,
        balanced: bool,
    ):
        features = np.concatenate([crop[rows], mirror[rows]])
        self.mean, self.std = features.mean(axis=0), features.std(axis=0) + 1e-6
        self.features = (features - self.mean) / self.std
        self.labels, self.num_classes = np.concatenate([labels[rows], labels[rows]]), num_classes
        self.weights = balanced_weights(self.labels) if balanced else None
        self.model = LogisticRegression(warm_start=True, max_iter=1000, tol=1e-3)

    def fit(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """weight (classes, d) and bias (classes,) float32, for features as they come.

        A class without an image here gets the mean of the others' rows, and at most one chance in n + 1.
        """
        classes = np.unique(self.labels)
        present, offset = np.zeros((len(classes), self.features.shape[1])), np.zeros(len(classes))
        if len(classes) > 1:
            with threadpool_limits(1, "blas"):  # products this small cost more to share out than to compute
                self.model.set_params(C=strength).fit(self.features, self.labels, self.weights)
            present, offset = self.model.coef_, self.model.intercept_
            if len(classes) == 2:  # the library keeps one row, of the second class against the first
                present, offset = np.concatenate([-present, present]) / 2, np.concatenate([-offset, offset]) / 2
        weight = np.tile(present.mean(axis=0), (self.num_classes, 1))
        bias = np.full(self.num_classes, offset.mean() - np.log(len(self.labels) / 2 + 1))
        weight[classes], bias[classes] = present, offset
        weight = weight / self.std
        return weight.astype(np.float32), (bias - weight @ self.mean).astype(np.float32)


def _check(labels: np.ndarray, folds: np.ndarray) -> None:
    num_folds, num_classes = len(np.unique(folds)), len(np.unique(labels))
    if num_folds < 2:
        raise ValueError(f"a probe needs images in at least two folds; its {len(labels)} are in {num_folds}")
    if num_classes < 2:
        raise ValueError(f"a probe needs images of at least two classes; its {len(labels)} are of {num_classes}")
