"""Find the thresholds from which an answer counts: how probable a class, how familiar a picture.

A class's come from predictions on training images by networks that had not seen them (out of fold), for new pictures like those.
Promised is the true precision, that of endless new pictures: with a chance of at most 5 % the training images give a threshold
whose true precision is less than demanded. Two things are not promised. The share that is right of a few answers has chance of its
own: of 35, each right in 0.9 of the cases, fewer than 0.9 are right half of the time. And where a threshold is seldom found at all,
as among too few images, those that are found owe it to luck more often: no test rules that out.

Familiarity's come from scores by class means and covariances fitted without the image, but of a network that was trained on it:
the confidence is that of a sample of this size, and leaves out what the network remembers.
"""

import math
from bisect import bisect_left
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
    return {
        name: lowest_threshold(*surest_first(logits, labels, class_names.index(name)), demanded)
        for name, demanded in min_precision.items()
    }


def surest_first(logits: np.ndarray, labels: np.ndarray, answer: int) -> tuple[np.ndarray, np.ndarray]:
    """The confidence (k,) of the answers of a class, descending, and whether each is right (k,)."""
    answers = logits.argmax(axis=1) == answer
    confidence = softmax(logits)[answers, answer]
    order = np.argsort(-confidence, kind="stable")
    return confidence[order], (labels[answers] == answer)[order]


def lowest_threshold(confidence: np.ndarray, is_right: np.ndarray, demanded: float) -> float:
    """The lowest confidence above which answers are right with at least probability `demanded`, or NEVER.

    `confidence` and `is_right` are (k,), the surest first. From the surest answers on, more and more are taken while a binomial
    test at 5 % rejects that fewer are right than demanded; it stops at the first that does not. Tests in a fixed order need no
    correction for their number (Angelopoulos et al., Learn then Test, 2021). The first set is a quarter of all answers, so that
    one wrong label among the surest does not decide, but no smaller than could pass if all of it were right.
    """
    num_right, found = np.cumsum(is_right), NEVER
    first = max(fewest_answers(demanded), len(is_right) // 4)
    for taken in range(first, len(is_right) + 1, max(1, len(is_right) // 20)):
        taken = int((confidence >= confidence[taken - 1]).sum())  # a threshold cannot tell equal ones apart
        if stats.binom.sf(num_right[taken - 1] - 1, taken, demanded) > 1 - CONFIDENCE:
            break
        found = float(confidence[taken - 1])
    return found


def fewest_answers(demanded: float) -> int:
    """So many answers show that at least a share `demanded` of them is right, if all of these are."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(demanded))


def advice(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str], name: str, demanded: float) -> str:
    """What to do about a class that has no threshold."""
    _, is_right = surest_first(logits, labels, class_names.index(name))
    needed = images_needed(is_right, demanded, len(labels))
    more = "Its surest answers are not right that often, so more images alone are of little help"
    if needed is not None:
        more = f"About {max(float(f'{needed:.3g}'), len(labels) + 1):.0f} images may be enough"
    return (
        f"decision.min_precision: {len(labels)} held-out images cannot show {demanded} for {name}, so it will never be answered. "
        f"{more}; or demand less"
    )


def images_needed(is_right: np.ndarray, demanded: float, num_images: int) -> int | None:
    """About how many images would show the precision; None where no share of the answers is right often enough.

    `is_right` (k,) are the answers among `num_images`, the surest first. Where all are right, the fewest that can show it count.
    Else the precision of each number of the surest is estimated by Laplace's rule; needed are as many as tell it from `demanded`
    by a normal test at 5 %, every second time.
    """
    if len(is_right) and is_right.all():
        return math.ceil(fewest_answers(demanded) * num_images / len(is_right))
    taken = np.arange(1, len(is_right) + 1)
    better = (np.cumsum(is_right) + 1) / (taken + 2) - demanded
    taken, better = taken[better > 0], better[better > 0]
    if not len(taken):
        return None
    answers = stats.norm.ppf(CONFIDENCE) ** 2 * demanded * (1 - demanded) / better**2
    return math.ceil((np.maximum(answers, fewest_answers(demanded)) * num_images / taken).min())


def familiarity_threshold(num_held_out: int, max_refused: float) -> float:
    """Refuse pictures less familiar than this: of pictures like the training images at most `max_refused` are. 0 refuses none.

    Familiarity is a rank among `num_held_out` images, and the threshold lies between their k-th and next smallest score. The share
    below the next one has a Beta distribution with k + 1 and n - k: k is the largest for which that share is at most
    `max_refused` with 95 % confidence.
    """
    ranks = np.arange(1, num_held_out)
    allowed = ranks[stats.beta.ppf(CONFIDENCE, ranks + 1, num_held_out - ranks) <= max_refused]
    return float((allowed.max() - 0.5) / num_held_out) if len(allowed) else 0.0


def fewest_held_out(max_refused: float) -> int:
    """So many images give a threshold of familiarity above 0. `max_refused` is above 0."""
    numbers = range(2, int(5 / max_refused) + 2)
    return numbers[bisect_left(numbers, True, key=lambda num: stats.beta.ppf(CONFIDENCE, 2, num - 1) <= max_refused)]
