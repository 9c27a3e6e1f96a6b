"""The sampling plan: which images, which crops and which flips each epoch sees, made up front from the seed alone.

It does not depend on the device, on the number of devices or on earlier epochs, so that a run on two GPUs, or one resumed
after a power cut, sees what the same run on one CPU would have seen.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from stages.shared.transforms import draw_crops


class Draws(NamedTuple):
    index: torch.Tensor  # type: ignore[assignment]  # (n,) int64, into the split; tuple.index is of no use here
    boxes: torch.Tensor  # (n, 4) int64, [top, left, height, width]
    flips: torch.Tensor  # (n,) bool


def plan_epoch(sizes: torch.Tensor, chosen: torch.Tensor, seed: int, epoch: int, augment: bool = True) -> Draws:
    """One epoch over the images `chosen` (n,), shuffled; `sizes` (N, 2) [height, width] is that of the whole split.

    Without `augment` every image is taken whole and unflipped, in the same order as with it.
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    index = chosen[torch.randperm(len(chosen), generator=generator)]
    if not augment:
        whole = torch.cat([torch.zeros(len(index), 2, dtype=torch.int64), sizes[index].long()], dim=1)
        return Draws(index, whole, torch.zeros(len(index), dtype=torch.bool))
    return Draws(index, *draw_crops(sizes[index], generator))


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch of one run; different for neighbouring seeds and epochs."""
    return (seed * 1_000_003 + epoch) % 2**63


def steps(epoch: Draws, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Draws]:
    """The epoch's batches, the last one partial; each device takes every `world_size`-th image of each batch."""
    for start in range(0, len(epoch.index), batch_size):
        end = min(start + batch_size, len(epoch.index))
        yield Draws(*(part[start + rank : end : world_size] for part in epoch))


def choose_fraction(labels: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """Indices of a stratified random subset: `fraction` of each class, at least one image; larger fractions contain smaller ones."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [
        members[: max(1, round(fraction * len(members)))]
        for members in (order[labels[order] == label] for label in labels.unique())
    ]
    return torch.cat(chosen).sort().values
