"""Odd pictures: blank, dark, blurred, tiny, of extreme shape, or far from every other picture of their class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.inspect.structure import unit_rows

BLANK, DARK, BLURRED = 4.0, 25.0, 0.7  # gray levels of 255: deviation, mean, mean step between neighbouring pixels
TINY = 0.25  # of the crop's side, the shorter side
LONG = 4.0  # longer side over shorter
FAR = 0.99  # share of the training images that are nearer to their class


class Looks(NamedTuple):
    """The look of an image as a whole, in gray levels; each (n,)."""

    mean: np.ndarray
    deviation: np.ndarray
    step: np.ndarray  # between neighbouring pixels, on average


def looks_of(crops: np.ndarray) -> Looks:
    """For uint8 (n, crop, crop, 3)."""
    gray = crops.mean(axis=3, dtype=np.float32)
    step = (np.abs(np.diff(gray, axis=1)).mean((1, 2)) + np.abs(np.diff(gray, axis=2)).mean((1, 2))) / 2
    return Looks(gray.mean((1, 2)), gray.std((1, 2)), step)


def find_odd(
    looks: Looks, sizes: np.ndarray, features: np.ndarray, labels: np.ndarray, crop: int
) -> dict[int, list[str]]:
    """Training row -> why it is odd. `sizes` (n, 2), `features` (n, d), `labels` (n,)."""
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    distance = distance_to_class(features, labels)
    found: Sequence[tuple[str, np.ndarray]] = (
        ("blank", looks.deviation < BLANK),
        ("dark", (looks.mean < DARK) & (looks.deviation >= BLANK)),
        ("blurred", (looks.step < BLURRED) & (looks.deviation >= BLANK)),
        ("tiny", shorter < TINY * crop),
        ("extreme shape", longer > LONG * shorter),
        ("far from its class", distance > np.quantile(distance, FAR)),
    )
    odd: dict[int, list[str]] = {}
    for reason, rows in found:
        for row in np.flatnonzero(rows).tolist():
            odd.setdefault(row, []).append(reason)
    return dict(sorted(odd.items()))


def distance_to_class(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,): 1 - the cosine between each image's features and its class's mean, all of them less the mean of all."""
    rows = unit_rows(features - features.mean(axis=0))
    centers = {label: unit_rows(rows[labels == label].mean(axis=0)[None])[0] for label in np.unique(labels).tolist()}
    return np.array([1 - row @ centers[label] for row, label in zip(rows, labels.tolist(), strict=True)])
