"""Wrong labels: images that a head and neighbours that never saw them take for another class, surer than that class can explain."""

from typing import NamedTuple

import numpy as np
from cleanlab.filter import find_label_issues
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier

from stages.inspect.structure import unit_rows
from stages.shared.probe import fit_probe

SURE = 0.5  # how much more probable the proposed class must be: without it, a weak network flags a third of the images
NEIGHBOURS = 10
WIDTH = 0.1  # of a neighbour's vote, in 1 - cosine


class LabelIssue(NamedTuple):
    row: int
    given: int
    proposed: int
    confidence: float  # the out-of-fold probability of the proposed class less that of the given one, 0 to 1


def out_of_fold_probabilities(
    crop: np.ndarray, mirror: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int
) -> np.ndarray:
    """(n, classes): what the images of the other folds say of each image, through a calibrated probe and as its neighbours.

    The mean of both, for they err in different places. `crop` and `mirror` (n, d) are features of the images and of the same mirrored.
    """
    probe = fit_probe([crop, mirror], labels, folds, num_classes, balanced=True)
    by_probe = softmax(probe.logits.astype(np.float64) / probe.temperature, axis=1)
    return (by_probe + neighbour_probabilities(crop, labels, folds, num_classes)) / 2


def neighbour_probabilities(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int
) -> np.ndarray:
    """(n, classes): votes of the nearest images of other folds, where every class counts alike. Images of fold -1 have no vote."""
    rows = unit_rows(features - features.mean(axis=0))
    votes = np.full((len(labels), num_classes), 1e-3)
    for fold in np.unique(folds):
        inside, voting = folds == fold, (folds != fold) & (folds >= 0)
        neighbours = KNeighborsClassifier(
            min(NEIGHBOURS, int(voting.sum())),
            algorithm="brute",
            weights=lambda distance: np.exp(-(distance**2) / (2 * WIDTH)),  # of unit vectors: 1 - cosine
        ).fit(rows[voting], labels[voting])
        shares = neighbours.predict_proba(rows[inside]) / np.bincount(labels[voting])[neighbours.classes_]
        votes[np.ix_(inside, neighbours.classes_)] += shares / shares.sum(axis=1, keepdims=True)
    return votes / votes.sum(axis=1, keepdims=True)


def find_wrong_labels(probabilities: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> list[LabelIssue]:
    """The issues among `rows`, the surest first: by confident learning (Northcutt et al., 2021), and SURE."""
    proposed = probabilities.argmax(axis=1)
    if len(np.unique(labels[rows])) < 2:
        return []
    flagged = find_label_issues(
        labels[rows],
        probabilities[rows],
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    )
    issues = []
    for row in rows[flagged].tolist():
        given, other = int(labels[row]), int(proposed[row])
        confidence = float(probabilities[row, other] - probabilities[row, given])
        if confidence >= SURE:
            issues.append(LabelIssue(row, given, other, confidence))
    return sorted(issues, key=lambda issue: (-issue.confidence, issue.row))
