"""Find the thresholds from which an answer counts: how probable a class, how familiar a picture.

A class's come from predictions on training images by networks that had not seen them (out of fold), and hold with 95 %
confidence on new pictures like those. Familiarity's come from scores by class means and covariances fitted without the image,
but of a network that was trained on it: the confidence is that of a sample of this size, and leaves out what the network remembers.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from stages.shared.metrics import softmax

CONFIDENCE = 0.95
NEVER = 2.0  # a probability that no answer reaches


def probability_thresholds(
    logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str], min_precision: Mapping[str, float]
) -> dict[str, float]:
    """For each class of `min_precision`: answers of it at least this probable are right as often as demanded.

    `logits` (n, classes) are calibrated and out of fold, `labels` (n,). NEVER where the images cannot show it. Raises
    ValueError for a class that does not exist.
    """
    unknown = sorted(set(min_precision) - set(class_names))
    if unknown:
        raise ValueError(f"decision.min_precision names {', '.join(unknown)}; the classes are {', '.join(class_names)}")
    probabilities, predicted = softmax(logits), logits.argmax(axis=1)
    thresholds = {}
    for name, demanded in min_precision.items():
        chosen = predicted == class_names.index(name)
        thresholds[name] = lowest_threshold(probabilities[chosen].max(axis=1), (labels == predicted)[chosen], demanded)
    return thresholds


def lowest_threshold(confidence: np.ndarray, is_right: np.ndarray, demanded: float) -> float:
    """The lowest confidence above which predictions are right with at least probability `demanded`, or NEVER.

    From the surest predictions on, more and more are taken while a binomial test at 5 % rejects that fewer are right than
    demanded; it stops at the first that does not. Tests in a fixed order need no correction for their number (Angelopoulos
    et al., Learn then Test, 2021). The first set is the smallest that could pass if all of it were right.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, num_right = confidence[order], np.cumsum(is_right[order])
    smallest = math.ceil(math.log(1 - CONFIDENCE) / math.log(demanded)) if demanded < 1 else len(order) + 1
    step = max(1, len(order) // 20)
    found = NEVER
    for taken in range(smallest, len(order) + 1, step):
        if stats.binom.sf(num_right[taken - 1] - 1, taken, demanded) > 1 - CONFIDENCE:
            break
        found = float(confidence[taken - 1])
    return found


def familiarity_threshold(num_held_out: int, max_refused: float) -> float:
    """Refuse pictures less familiar than this: of pictures like the training images at most `max_refused` are.

    Familiarity is a rank among `num_held_out` images, and the threshold lies between their k-th and next smallest score. The share
    below the next one has a Beta distribution with k + 1 and n - k: k is the largest for which that share is at most
    `max_refused` with 95 % confidence.
    """
    ranks = np.arange(1, num_held_out)
    allowed = ranks[stats.beta.ppf(CONFIDENCE, ranks + 1, num_held_out - ranks) <= max_refused]
    return float((allowed.max() - 0.5) / num_held_out) if len(allowed) else 0.0
