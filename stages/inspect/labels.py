"""Wrong labels: images that a head which never saw them takes for another class, surer than their class can explain."""

from typing import NamedTuple

import numpy as np
from cleanlab.filter import find_label_issues
from scipy.special import softmax

from stages.shared.probe import fit_probe

SURE = 0.5  # how much more probable the proposed class must be: without it, a weak network flags a third of the images


class LabelIssue(NamedTuple):
    row: int
    given: int
    proposed: int
    confidence: float  # the out-of-fold probability of the proposed class less that of the given one, 0 to 1


def out_of_fold_probabilities(
    crop: np.ndarray, mirror: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int
) -> np.ndarray:
    """(n, classes): what a probe fitted on the other folds' features says of each image, calibrated."""
    probe = fit_probe(crop, mirror, labels, folds, num_classes, balanced=True)
    return softmax(probe.logits.astype(np.float64) / probe.temperature, axis=1)


def find_wrong_labels(probabilities: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> list[LabelIssue]:
    """The issues among `rows`, the surest first: by confident learning (Northcutt et al., 2021), and SURE."""
    proposed = probabilities.argmax(axis=1)
    if len(np.unique(labels[rows])) < 2:
        return []
    flagged = find_label_issues(
        labels[rows], probabilities[rows], filter_by="both", return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    issues = []
    for row in rows[flagged].tolist():
        given, other = int(labels[row]), int(proposed[row])
        confidence = float(probabilities[row, other] - probabilities[row, given])
        if confidence >= SURE:
            issues.append(LabelIssue(row, given, other, confidence))
    return sorted(issues, key=lambda issue: (-issue.confidence, issue.row))
