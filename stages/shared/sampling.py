"""The sampling plan: the images, crops and flips of each epoch, made up front from the seed alone.

It does not depend on the device, on the number of devices or on earlier epochs, so that a run on two GPUs, or one resumed
after a power cut, sees what the same run on one CPU would have seen.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from stages.shared.transforms import SCALE, draw_crops


@dataclass(frozen=True)
class Augmentation:
    """The random changes of an image each time it is seen, besides crop and flip."""

    crop_scale: tuple[float, float] = SCALE  # least and most of the image's area in a crop
    color: float = 0.0  # brightness, contrast and saturation are multiplied by 1 - color to 1 + color
    mixup: float = 0.0  # alpha of the Beta distribution of an image's share in a mixture of two; 0: none are mixed


@dataclass(frozen=True)
class Sampling:
    """The images that the epochs of one training see, and in what batches."""

    chosen: torch.Tensor  # (n,) int64: rows of the split, each of which every epoch sees once
    seed: int
    epochs: int
    batch_size: int
    augmentation: Augmentation | None = Augmentation()  # None: every image whole

    @property
    def full_batch(self) -> int:
        return min(self.batch_size, len(self.chosen))

    @property
    def num_batches(self) -> int:
        """The number of batches in an epoch."""
        return math.ceil(len(self.chosen) / self.batch_size)


class Draws(NamedTuple):
    """The random numbers drawn for n images."""

    index: torch.Tensor  # type: ignore[assignment]  # (n,) int64, into the split; tuple.index is of no use here
    boxes: torch.Tensor  # (n, 4) int64, [top, left, height, width]
    flips: torch.Tensor  # (n,) bool
    colors: torch.Tensor | None = None  # (n, 3) float32, factors of brightness, contrast and saturation
    share: torch.Tensor | None = None  # (n,) float32 in [0.5, 1], of the image in its mixture with another
    other_index: torch.Tensor | None = None  # (n,) int64, that other image
    other_boxes: torch.Tensor | None = None  # (n, 4) int64
    other_flips: torch.Tensor | None = None  # (n,) bool

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Draws":
        """The draws with every tensor changed."""
        return Draws(*(None if part is None else change(part) for part in self))  # type: ignore[arg-type]

    def tensors(self) -> list[torch.Tensor]:
        return [part for part in self if part is not None]

    def to_cut(self) -> "Draws":
        """The crops that these images need: n, or, where images are mixed, 2n, the other images' after their own."""
        if self.other_index is None or self.other_boxes is None or self.other_flips is None:
            return Draws(self.index, self.boxes, self.flips)
        pairs = (self.index, self.other_index), (self.boxes, self.other_boxes), (self.flips, self.other_flips)
        return Draws(*(torch.cat(pair) for pair in pairs))


def plan_epoch(
    sizes: torch.Tensor,
    chosen: torch.Tensor,
    seed: int,
    epoch: int,
    augmentation: Augmentation | None = Augmentation(),
) -> Draws:
    """One epoch over the images `chosen` (n,), shuffled; `sizes` (N, 2) [height, width] is that of the whole split.

    Without `augmentation` every image is taken whole and unflipped, in the same order as with it.
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    index = chosen[torch.randperm(len(chosen), generator=generator)]
    if augmentation is None:
        whole = torch.cat([torch.zeros(len(index), 2, dtype=torch.int64), sizes[index].long()], dim=1)
        return Draws(index, whole, torch.zeros(len(index), dtype=torch.bool))
    draws = Draws(index, *draw_crops(sizes[index], generator, augmentation.crop_scale))
    if augmentation.color:
        uniform = torch.rand(len(index), 3, generator=generator)
        draws = draws._replace(colors=1 + augmentation.color * (2 * uniform - 1))
    if augmentation.mixup:
        others = torch.randperm(len(index), generator=generator)
        alpha = augmentation.mixup
        beta = np.random.default_rng(epoch_seed(seed, epoch)).beta(alpha, alpha, len(index))
        draws = draws._replace(
            share=torch.from_numpy(np.maximum(beta, 1 - beta)).float(),
            other_index=draws.index[others],
            other_boxes=draws.boxes[others],
            other_flips=draws.flips[others],
        )
    return draws


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch of one run; different for neighbouring seeds and epochs."""
    return (seed * 1_000_003 + epoch) % 2**63


def dropout_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed for what the network itself draws on one device: no other device's or epoch's, and not that of the sampling plan."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1, np.uint64)[0] >> 1)


def batches(epoch: Draws, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Draws]:
    """The epoch's batches, the last one partial; each device takes every `world_size`-th image of each batch."""
    for start in range(0, len(epoch.index), batch_size):
        end = min(start + batch_size, len(epoch.index))
        yield epoch.each(lambda part, own=slice(start + rank, end, world_size): part[own])  # type: ignore[misc]


def choose_fraction(labels: torch.Tensor, fraction: float, seed: int) -> torch.Tensor:
    """Indices of a stratified random subset: `fraction` of each class, at least one image; larger fractions contain smaller ones."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [
        members[: max(1, round(fraction * len(members)))]
        for members in (order[labels[order] == label] for label in labels.unique())
    ]
    return torch.cat(chosen).sort().values
