"""Compute once what a recipe without augmentation needs in every epoch: test crops, features."""

import time

import numpy as np
import torch
from torch import nn

from stages.shared.dataset import TrainSplit, fixed_crops
from stages.shared.encoded import EncodedCrops, EncodedImages, Pixels
from stages.shared.feature_extraction import compute_features
from stages.shared.model import trainable_tail
from stages.shared.reproducibility import Execution
from stages.shared.transforms import Transform


def without_augmentation(
    model: nn.Module,
    head: tuple[str, ...],
    split: TrainSplit,
    chosen: torch.Tensor,
    transform: Transform,
    batch_size: int,
    execution: Execution,
) -> tuple[nn.Module, TrainSplit, torch.Tensor | None]:
    """The module to train, the images to train it on, and their features (n, ...) where a frozen part needs to run only once.

    The images are the test crops of those `chosen` (n,) of `split`, in that order.
    """
    crops = cropped(split, chosen, transform)
    tail = trainable_tail(model, head)
    if tail is None:
        return model, crops, None
    start = time.perf_counter()
    features = compute_features(model, tail, crops.pixels, transform, batch_size, execution)
    print(f"features of {len(features)} images computed once, in {time.perf_counter() - start:.1f} s", flush=True)
    return nn.Sequential(tail, nn.Flatten(1)), crops, features


def cropped(split: TrainSplit, chosen: torch.Tensor, transform: Transform) -> TrainSplit:
    """The images `chosen` (n,) of `split`, as the test transform cuts them, as a split of their own: cut now, or, of many, when they are read."""
    rows, pixels = chosen.tolist(), split.pixels
    if isinstance(pixels, EncodedImages):
        crops: Pixels = EncodedCrops(pixels, transform.resize, transform.crop, rows)
    else:
        crops = fixed_crops(split, rows, transform)
    sizes = np.full((len(chosen), 2), transform.crop, dtype=np.int32)
    return TrainSplit(crops, sizes, np.asarray(split.labels)[chosen.numpy()])
