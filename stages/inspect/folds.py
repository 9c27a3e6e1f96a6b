"""Folds of the training split for validation: near-duplicates together, every class spread evenly, chosen by content."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stages.shared.held_out import LEFT_OUT

FEW = 200  # images, below which every image counts: more folds, each of which leaves fewer out
NUM_FOLDS, NUM_FOLDS_OF_FEW = 6, 12  # each is dealt evenly to two or three, for recipes that ask for fewer


def choose_num_folds(num_images: int) -> int:
    return NUM_FOLDS if num_images >= FEW else NUM_FOLDS_OF_FEW


def group_images(num_images: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """(n,) int32: the same number for images that a chain of pairs connects."""
    rows, columns = np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), (num_images, num_images))
    return connected_components(graph, directed=False)[1]


def assign_folds(labels: np.ndarray, digests: Sequence[str], groups: np.ndarray, left_out: Iterable[int]) -> np.ndarray:
    """Each training image's fold, (n,) int64: 0 to K-1, or LEFT_OUT.

    Group by group, in the order of their smallest digests (as good as random, and the same wherever the files lie), to
    the fold that has the fewest images of the group's classes, of several to the one with the fewest images.
    """
    kept = np.ones(len(labels), dtype=bool)
    kept[list(left_out)] = False
    folds = np.full(len(labels), LEFT_OUT, dtype=np.int64)
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(kept).tolist():
        members.setdefault(int(groups[row]), []).append(row)
    num_folds = min(choose_num_folds(int(kept.sum())), len(members))
    counts = np.zeros((num_folds, int(labels.max()) + 1), dtype=np.int64)
    for rows in sorted(members.values(), key=lambda rows: min(digests[row] for row in rows)):
        classes, sizes = np.unique(labels[rows], return_counts=True)
        fold = min(range(num_folds), key=lambda k: (*(counts[k, classes] * sizes), counts[k].sum(), k))
        folds[rows] = fold
        counts[fold, classes] += sizes
    return folds


def check_classes(labels: np.ndarray, left_out: Iterable[int], class_names: Sequence[str]) -> None:
    """Raise ValueError naming a class of which no training image would be left."""
    kept = np.ones(len(labels), dtype=bool)
    kept[list(left_out)] = False
    for label, name in enumerate(class_names):
        if not (labels[kept] == label).any():
            raise ValueError(
                f"class {name}: every training image shows a picture of the test split (see inspect's leaks); "
                "add training images, or set inspect.leaks: keep in params.yaml and distrust the test scores"
            )
