"""Near-duplicates: images of one picture, be it resized, recompressed, cropped a little, mirrored or recoloured.

Who could be whose duplicate is asked of two descriptions, the network's features and a perceptual hash: each image's nearest
neighbours, found block by block. Whether they are is decided on the images: one is laid on the other, shifted and stretched, and
both must agree in its middle and all over.
"""

from typing import NamedTuple

import numpy as np
import torch

from stages.inspect.overlay import agreement_all_over, lay
from stages.inspect.structure import hashes_of, unit_rows

NEIGHBOURS = 6  # of each image, by each description
BLOCK = 512  # images whose similarities to all others lie in memory at a time
STRETCHES = (0.9, 0.95, 1.0, 1.05, 1.11)  # of width and height: a picture that lost up to a tenth of its side
COARSE = (0.92, 1.0, 1.08)
# Agreement at half the resolution, below which a pair is not looked at again; copies reach 0.66 and more.
POSSIBLE = 0.55
AGREEMENT = 0.72  # correlation of the middle, from which two images may be one picture; different photos reach 0.4, stripes 0.85
ALL_OVER = 0.66  # agreement of the worse parts, from which they are: two things alike on different grounds reach 0.61


class Pair(NamedTuple):
    first: int
    second: int  # greater than `first`
    mirrored: bool
    distance: float  # 1 - correlation where they agree best


def find_pairs(structure: np.ndarray, crop: np.ndarray, mirror: np.ndarray) -> list[Pair]:
    """The pairs of near-duplicates among N images, the closest first.

    `structure` is (N, side, side), `crop` (N, d) their features; `mirror` (n, d) those of the first n images mirrored.
    """
    candidates = find_candidates(structure, crop, mirror)
    rough, _ = lay(structure, candidates, COARSE, shrink=2, name="compare roughly")
    candidates = candidates[rough >= POSSIBLE]
    agreement, places = lay(structure, candidates, STRETCHES, shrink=1, name="compare closely")
    alike = agreement >= AGREEMENT
    candidates, agreement, places = candidates[alike], agreement[alike], places[alike]
    alike = agreement_all_over(structure, candidates, places) >= ALL_OVER
    best: dict[tuple[int, int], Pair] = {}
    for (first, second, mirrored), found in zip(candidates[alike].tolist(), agreement[alike].tolist(), strict=True):
        pair = Pair(first, second, bool(mirrored), 1 - found)
        if pair.distance < best.get((first, second), pair._replace(distance=2)).distance:
            best[first, second] = pair
    return sorted(best.values(), key=lambda pair: (pair.distance, pair))


def find_candidates(structure: np.ndarray, crop: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Pairs (p, 3) int64 [first, second, mirrored], first < second, that one of the descriptions holds for similar."""
    center = crop.mean(axis=0)
    features, mirrored = unit_rows(crop - center), unit_rows(mirror - center)
    hashes, mirrored_hashes = hashes_of(structure)
    found = [
        nearest(features, features, 0),
        nearest(features, mirrored, 1),
        nearest(hashes, hashes, 0),
        nearest(hashes, mirrored_hashes, 1),
    ]
    pairs = np.concatenate(found)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pairs[:, :2].sort(axis=1)
    return np.unique(pairs, axis=0)


def nearest(queries: np.ndarray, keys: np.ndarray, mirrored: int) -> np.ndarray:
    """(q * NEIGHBOURS, 3) int64 [query, key, mirrored]: the most similar keys of each query, by the cosine of unit rows."""
    rows, keys_t = [], torch.from_numpy(keys).T
    for start in range(0, len(queries), BLOCK):
        block = torch.from_numpy(queries[start : start + BLOCK]) @ keys_t
        block[:, start:].diagonal().fill_(-2.0)  # itself
        best = block.topk(min(NEIGHBOURS, len(keys)), dim=1).indices
        query = torch.arange(start, start + len(block))[:, None].expand_as(best)
        rows.append(torch.stack([query, best, torch.full_like(best, mirrored)], dim=-1).reshape(-1, 3))
    return torch.cat(rows).numpy()
