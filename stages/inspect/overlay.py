"""Lay one image on another, stretched and shifted so that they agree best, and measure how well they agree there."""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

PAIRS = 256  # pairs that are compared at a time
TILES = 4  # of the overlap, in each direction
FLAT = 0.05  # energy of a pixel, below which a surface has no structure that could differ


def lay(
    structure: np.ndarray, pairs: np.ndarray, stretches: tuple[float, ...], shrink: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The best correlation (p,) of each pair over all stretches and shifts of the second image's middle, and where it is reached.

    `pairs` are (p, 3) [first, second, mirrored]; a place (p, 4) is the stretch down and across, and the middle's top and left
    in the first image, in pixels of the images shrunk by `shrink`.
    """
    best, places = [np.zeros(0, np.float32)], [np.zeros((0, 4), np.float32)]
    with tqdm(total=len(pairs), desc=name, unit=" pairs", disable=None, leave=False) as bar:
        for start in range(0, len(pairs), PAIRS):
            whole, other = _read(structure, pairs[start : start + PAIRS], shrink)
            correlation, place = _best_place(whole, other, stretches)
            best.append(correlation.numpy())
            places.append(place.numpy())
            bar.update(len(whole))
    return np.concatenate(best), np.concatenate(places)


def agreement_all_over(structure: np.ndarray, pairs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The agreement of each pair (p,) in the worse parts of its overlap, when laid at `places`: the lower quartile over its tiles.

    A tile scores 1 where both are the same or both are flat, 0 where they have nothing in common.
    """
    found = np.zeros(len(pairs), np.float32)
    for row in range(len(pairs)):
        whole, other = _read(structure, pairs[row : row + 1], shrink=1)
        found[row] = np.quantile(_tile_scores(*_overlap(whole[0], other[0], places[row])), 0.25)
    return found


def _read(structure: np.ndarray, pairs: np.ndarray, shrink: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images of each pair (p, side, side), the second mirrored where the pair says so."""
    first, second = (
        F.avg_pool2d(torch.from_numpy(structure[rows]).float()[:, None], shrink)[:, 0] for rows in pairs[:, :2].T
    )
    mirrored = torch.from_numpy(pairs[:, 2]).bool()
    return first, torch.where(mirrored[:, None, None], second.flip(2), second)


def _best_place(
    whole: torch.Tensor, other: torch.Tensor, stretches: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The maximum of the normalised cross-correlation of the middle of `other` with every place in `whole`, both (p, side, side)."""
    side = whole.shape[1]
    middle = _middle(side)
    waves = torch.fft.rfft2(whole)
    sums, squares = (_window_means(values, middle) for values in (whole, whole.square()))
    energy = (squares - sums.square()).clamp(min=0) * middle**2  # (p, shifts, shifts)
    shifts = side - middle + 1
    best, places = torch.zeros(len(whole)), torch.ones(len(whole), 4)
    for down in stretches:
        for across in stretches:
            stretched = _stretched(other, down, across)
            top, left = ((size - middle) // 2 for size in stretched.shape[1:])
            template = stretched[:, top : top + middle, left : left + middle]
            template = template - template.mean((1, 2), keepdim=True)
            waves_of_it = torch.fft.rfft2(template, s=(side, side))
            product = torch.fft.irfft2(waves * waves_of_it.conj(), s=(side, side))
            strength = (energy * template.square().sum((1, 2))[:, None, None]).sqrt()
            correlation = product[:, :shifts, :shifts] / (strength + 0.05 * middle**2)
            highest, where = correlation.flatten(1).max(1)
            place = torch.stack(
                [torch.full_like(highest, down), torch.full_like(highest, across), where // shifts, where % shifts], 1
            )
            places = torch.where((highest > best)[:, None], place, places)
            best = torch.maximum(best, highest)
    return best, places


def _window_means(images: torch.Tensor, side: int) -> torch.Tensor:
    """The mean of every window of `side` pixels, (p, shifts, shifts): down first, then across, which is side / 2 times as fast."""
    return F.avg_pool2d(F.avg_pool2d(images[:, None], (side, 1), stride=1), (1, side), stride=1)[:, 0]


def _overlap(whole: torch.Tensor, other: torch.Tensor, place: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The parts of `whole` and of `other`, (side, side) each, that lie on each other: of one size."""
    side, (down, across, top, left) = len(whole), place.tolist()
    stretched = _stretched(other[None], down, across)[0]
    height, width = stretched.shape
    # The corner of the stretched image, in `whole`.
    y, x = int(top) - (height - _middle(side)) // 2, int(left) - (width - _middle(side)) // 2
    top, left, bottom, right = max(0, y), max(0, x), min(side, y + height), min(side, x + width)
    return whole[top:bottom, left:right], stretched[top - y : bottom - y, left - x : right - x]


def _tile_scores(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """(TILES * TILES,): twice the product over the sum of squares, tile by tile."""
    product, energy = (
        F.adaptive_avg_pool2d(values[None], TILES) for values in (first * second, first.square() + second.square())
    )
    return ((2 * product + FLAT) / (energy + FLAT)).flatten().numpy()


def _middle(side: int) -> int:
    return side * 5 // 8


def _stretched(images: torch.Tensor, down: float, across: float) -> torch.Tensor:
    size = (round(images.shape[1] * down), round(images.shape[2] * across))
    return F.interpolate(images[:, None], size, mode="bilinear", align_corners=False)[:, 0]
