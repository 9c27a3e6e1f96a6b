"""A probe: a regularised logistic head on frozen features, its strength chosen by cross-validation.

On some hundreds of images it rivals fine-tuning at a tenth of the time. It serves as a yardstick, as the head that
fine-tuning starts from and, because each image is judged by a head that never saw it, as a check of the labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from stages.shared.calibration import balanced_weights, fit_temperature, log_loss
from stages.shared.held_out import LEFT_OUT

# Inverse strengths C on scaled features, the strongest penalty first.
STRENGTHS = tuple(10.0 ** (half / 2) for half in range(-10, 3))
PATIENCE = 2  # strengths in a row that are no better than the best end the search


class Head(NamedTuple):
    """A linear head for features as they come: the scaling that it was fitted with is folded in."""

    weight: np.ndarray  # (classes, d) float32
    bias: np.ndarray  # (classes,) float32

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(n, classes) float32 for features (n, d)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Probe:
    head: Head  # fitted on all images that take part
    fold_heads: dict[int, Head]  # the head fitted without that fold's images
    logits: np.ndarray  # (n, classes) float32, out of fold, not calibrated
    temperature: float  # to divide logits by, fitted on `logits`
    strength: float  # the inverse strength C chosen
    loss: float  # log-loss of `logits` before calibration, weighted as the fit was


def views_of(features: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What a head learns from, float32 (n, d) each: train.safetensors' arrays (stages/features.py), the test crop's first."""
    return [features["crop"], features["mirror"], *features.get("corners", ())]


@threadpool_limits.wrap(limits=1, user_api="blas")  # products this small cost more to share out than to compute
def fit_probe(
    views: Sequence[np.ndarray],
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    *,
    balanced: bool = False,
    judged: np.ndarray | None = None,
) -> Probe:
    """The head for n images of which each is seen in several `views`: features float32 (n, d) each, the test crop's first.

    `labels` and `folds` are int64 (n,). Images of fold -1 take no part, so their logits are those of the head itself. All views
    of an image are in its fold; the strength is chosen on the features `judged` (n, d), the first view's where they are not
    given. `balanced` lets every class count alike.
    Raises ValueError where fewer than two folds or two classes are left.
    """
    kept, judged = folds != LEFT_OUT, views[0] if judged is None else judged
    _check(labels[kept], folds[kept])
    weights = balanced_weights(labels[kept]) if balanced else None
    parts = {
        int(fold): _Part(views, labels, kept & (folds != fold), num_classes, balanced)
        for fold in np.unique(folds[kept])
    }
    logits = np.zeros((len(labels), num_classes), dtype=np.float32)
    best_loss, best_strength, best_heads, best_logits, since = np.inf, STRENGTHS[0], dict[int, Head](), logits, 0
    for strength in STRENGTHS:
        heads, logits = {fold: part.fit(strength) for fold, part in parts.items()}, np.zeros_like(logits)
        for fold, head in heads.items():
            logits[folds == fold] = head.logits(judged[folds == fold])
        loss, since = log_loss(logits[kept], labels[kept], weights), since + 1
        if loss < best_loss:
            best_loss, best_strength, best_heads, best_logits, since = loss, strength, heads, logits, 0
        if since == PATIENCE:
            break

    head = _Part(views, labels, kept, num_classes, balanced).fit(best_strength)
    best_logits[~kept] = head.logits(judged[~kept])
    temperature = fit_temperature(best_logits[kept], labels[kept], weights)
    return Probe(head, best_heads, best_logits, temperature, best_strength, best_loss)


class _Part:
    """A part of the images, for which heads are fitted at one strength after the other, each from where the last ended.

    Features are divided by the square root of their standard deviation (Pareto scaling), in units in which the mean of its
    square is 1. Divided by all of it, the ones that hardly vary get such weights that fine-tuning from this head diverges.

    The scaled features are made anew for each fit: kept for six folds, those of two views would take ten times a view's memory.
    """

    def __init__(
        self,
        views: Sequence[np.ndarray],
        labels: np.ndarray,
        rows: np.ndarray,
        num_classes: int,
        balanced: bool,
    ):
        self.views, self.rows, self.num_images = views, rows, int(rows.sum())
        features = self.features()
        self.mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
        self.scale = np.sqrt(std * np.sqrt(np.mean(std**2)))
        self.labels, self.num_classes = np.tile(labels[rows], len(views)), num_classes
        self.weights = balanced_weights(self.labels) if balanced else None
        self.model = LogisticRegression(warm_start=True, max_iter=1000, tol=1e-3)

    def features(self) -> np.ndarray:
        """float32 (n * views, d): as they come, one view after the other."""
        return np.concatenate([view[self.rows] for view in self.views])

    def fit(self, strength: float) -> Head:
        """A class without an image here gets the mean of the others' rows, and at most one chance in n + 1."""
        classes = np.unique(self.labels)
        present, offset = np.zeros((len(classes), len(self.mean))), np.zeros(len(classes))
        if len(classes) > 1:
            features = self.features()
            features -= self.mean
            features /= self.scale
            self.model.set_params(C=strength).fit(features, self.labels, self.weights)
            present, offset = self.model.coef_, self.model.intercept_
            if len(classes) == 2:  # the library keeps one row, of the second class against the first
                present, offset = np.concatenate([-present, present]) / 2, np.concatenate([-offset, offset]) / 2
        weight = np.tile(present.mean(axis=0), (self.num_classes, 1))
        bias = np.full(self.num_classes, offset.mean() - np.log(self.num_images + 1))
        weight[classes], bias[classes] = present, offset
        weight = weight / self.scale
        return Head(weight.astype(np.float32), (bias - weight @ self.mean).astype(np.float32))


def _check(labels: np.ndarray, folds: np.ndarray) -> None:
    num_folds, num_classes = len(np.unique(folds)), len(np.unique(labels))
    if num_folds < 2:
        raise ValueError(f"a probe needs images in at least two folds; its {len(labels)} are in {num_folds}")
    if num_classes < 2:
        raise ValueError(f"a probe needs images of at least two classes; its {len(labels)} are of {num_classes}")
