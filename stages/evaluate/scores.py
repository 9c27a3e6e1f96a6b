"""Score predictions: one number a metric, and the points of the ROC and calibration curves."""

from dataclasses import dataclass

import numpy as np
from scipy import special
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score, roc_curve

from stages.shared.metrics import wilson_interval

POSITIVE = 0  # in a two-class task the first class is the one looked for


@dataclass(frozen=True)
class Predictions:
    """N classified images of K classes, and what every metric is computed from."""

    labels: np.ndarray  # (N,) int64
    predicted: np.ndarray  # (N,) int64
    losses: np.ndarray  # (N,) float64, cross-entropy in nats
    confidences: np.ndarray  # (N,) float64, probability of the predicted class
    log_odds: np.ndarray | None  # (N,) float64, of the positive class against the other; None unless K = 2
    num_classes: int

    @property
    def correct(self) -> np.ndarray:  # (N,) bool
        return self.predicted == self.labels


def predictions_from(logits: np.ndarray, labels: np.ndarray) -> Predictions:
    """`logits` (N, K) and `labels` (N,) as predictions; ties go to the first class."""
    logits = logits.astype(np.float64)
    log_probabilities = special.log_softmax(logits, axis=1)
    rows, num_classes = np.arange(len(labels)), logits.shape[1]
    predicted = logits.argmax(axis=1)
    return Predictions(
        labels=labels,
        predicted=predicted,
        losses=-log_probabilities[rows, labels],
        confidences=np.exp(log_probabilities[rows, predicted]),
        # Log-odds rank as the probabilities do, but do not run together at 0 and 1.
        log_odds=logits[:, POSITIVE] - logits[:, 1 - POSITIVE] if num_classes == 2 else None,
        num_classes=num_classes,
    )


def overall_scores(predictions: Predictions, *, bins: int) -> dict[str, float]:
    """Loss, top-1, macro F1, ROC-AUC and ECE. NaN where undefined: the AUC of more than two classes or of one.

    Macro F1 is the mean over the classes that occur among labels or predictions.
    """
    return {
        "test_loss": float(predictions.losses.mean()),
        "test_accuracy": float(predictions.correct.mean()),
        "macro_f1": float(np.nanmean(class_scores(predictions)["f1"])),
        "roc_auc": _roc_auc(predictions),
        "ece": sum(
            abs(row["accuracy"] - row["confidence"]) * row["num_images"]
            for row in calibration_points(predictions, bins)
        )
        / len(predictions.labels),
    }


def class_scores(predictions: Predictions) -> dict[str, np.ndarray]:
    """Precision, recall and F1, each (K,) float64; NaN where there is nothing to divide by."""
    classes = np.arange(predictions.num_classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=classes, zero_division=np.nan
    )
    return {"precision": precision, "recall": recall, "f1": f1}


def confusion(predictions: Predictions) -> np.ndarray:
    """Counts (K, K) int64: row = actual class, column = predicted class."""
    return confusion_matrix(predictions.labels, predictions.predicted, labels=np.arange(predictions.num_classes))


def roc_points(predictions: Predictions) -> list[dict[str, float]]:
    """The ROC curve from (0, 0) to (1, 1); empty where it is undefined."""
    if not _has_roc(predictions):
        return []
    # The library's first threshold is infinite, which tables cannot hold; the curve needs only the two rates.
    false_positive, true_positive, _ = roc_curve(predictions.labels == POSITIVE, predictions.log_odds)
    return [
        {"false_positive_rate": float(x), "true_positive_rate": float(y)}
        for x, y in zip(false_positive, true_positive, strict=True)
    ]


def confidence_bins(predictions: Predictions, bins: int) -> np.ndarray:
    """(N,) int64: which of `bins` equally wide bins of [0, 1] each image's confidence falls into."""
    return np.minimum((predictions.confidences * bins).astype(np.int64), bins - 1)


def calibration_points(predictions: Predictions, bins: int) -> list[dict[str, float]]:
    """Each bin that is not empty: mean confidence, accuracy with its 95 % interval, number of images."""
    members = confidence_bins(predictions, bins)
    points = []
    for index in np.unique(members):
        inside = members == index
        num_images, num_correct = int(inside.sum()), int(predictions.correct[inside].sum())
        low, high = wilson_interval(num_correct, num_images)
        points.append(
            {
                "bin_low": float(index / bins),
                "bin_high": float((index + 1) / bins),
                "confidence": float(predictions.confidences[inside].mean()),
                "accuracy": num_correct / num_images,
                "accuracy_low": low,
                "accuracy_high": high,
                "num_images": num_images,
            }
        )
    return points


def _has_roc(predictions: Predictions) -> bool:
    return predictions.log_odds is not None and len(np.unique(predictions.labels)) == 2


def _roc_auc(predictions: Predictions) -> float:
    if not _has_roc(predictions):
        return float("nan")
    return float(roc_auc_score(predictions.labels == POSITIVE, predictions.log_odds))
