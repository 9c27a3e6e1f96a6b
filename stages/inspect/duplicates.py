"""Near-duplicates: images of one picture, be it resized, recompressed, cropped a little, mirrored or recoloured.

Who could be whose duplicate is asked of two descriptions, the network's features and a perceptual hash: each image's nearest
neighbours, found block by block. Whether they are is decided on the images: one is laid on the other, shifted and stretched.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from stages.inspect.structure import hashes_of, unit_rows

NEIGHBOURS = 6  # of each image, by each description
BLOCK = 512  # images whose similarities to all others lie in memory at a time
PAIRS = 256  # pairs that are compared at a time
STRETCHES = (0.9, 0.95, 1.0, 1.05, 1.11)  # of width and height: a picture that lost up to a tenth of its side
COARSE = (0.92, 1.0, 1.08)
POSSIBLE = 0.35  # agreement at half the resolution, below which a pair is not looked at again
AGREEMENT = 0.72  # correlation from which two images are one picture; between different photos it is 0.4 at most, save for stripes


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
    rough = compare(structure, candidates, COARSE, shrink=2, name="compare roughly")
    candidates = candidates[rough >= POSSIBLE]
    agreement = compare(structure, candidates, STRETCHES, shrink=1, name="compare closely")
    best: dict[tuple[int, int], Pair] = {}
    for (first, second, mirrored), found in zip(candidates.tolist(), agreement.tolist(), strict=True):
        pair = Pair(first, second, bool(mirrored), 1 - found)
        if found >= AGREEMENT and pair.distance < best.get((first, second), pair._replace(distance=2)).distance:
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


def compare(
    structure: np.ndarray, pairs: np.ndarray, stretches: tuple[float, ...], shrink: int, name: str
) -> np.ndarray:
    """The best correlation (p,) float32 of each pair over all stretches and shifts of the second image's middle."""
    best = [np.zeros(0, np.float32)]
    with tqdm(total=len(pairs), desc=name, unit=" pairs", disable=None, leave=False) as bar:
        for start in range(0, len(pairs), PAIRS):
            first, second, mirrored = torch.from_numpy(pairs[start : start + PAIRS]).unbind(1)
            whole, other = (_read(structure, rows, shrink) for rows in (first, second))
            other = torch.where(mirrored.bool()[:, None, None], other.flip(2), other)
            best.append(_agreement(whole, other, stretches).numpy())
            bar.update(len(first))
    return np.concatenate(best)


def _read(structure: np.ndarray, rows: torch.Tensor, shrink: int) -> torch.Tensor:
    images = torch.from_numpy(structure[rows.numpy()]).float()
    return F.avg_pool2d(images[:, None], shrink)[:, 0]


def _agreement(whole: torch.Tensor, other: torch.Tensor, stretches: tuple[float, ...]) -> torch.Tensor:
    """Normalised cross-correlation of the middle of `other` with every place in `whole`, both (p, side, side): its maximum (p,)."""
    side = whole.shape[1]
    middle = side * 5 // 8
    waves = torch.fft.rfft2(whole)
    sums, squares = (F.avg_pool2d(values[:, None], middle, stride=1)[:, 0] for values in (whole, whole.square()))
    energy = (squares - sums.square()).clamp(min=0) * middle**2  # (p, shifts, shifts)
    best = torch.zeros(len(whole))
    for down in stretches:
        for across in stretches:
            template = _middle(other, down, across, middle)
            template = template - template.mean((1, 2), keepdim=True)
            waves_of_it = torch.fft.rfft2(template, s=(side, side))
            product = torch.fft.irfft2(waves * waves_of_it.conj(), s=(side, side))
            shifts = side - middle + 1
            strength = (energy * template.square().sum((1, 2))[:, None, None]).sqrt()
            correlation = product[:, :shifts, :shifts] / (strength + 0.05 * middle**2)
            best = torch.maximum(best, correlation.amax((1, 2)))
    return best


def _middle(images: torch.Tensor, down: float, across: float, middle: int) -> torch.Tensor:
    """The central (p, middle, middle) of images stretched by these factors."""
    side = images.shape[1]
    height, width = round(side * down), round(side * across)
    stretched = F.interpolate(images[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    top, left = (height - middle) // 2, (width - middle) // 2
    return stretched[:, top : top + middle, left : left + middle]
