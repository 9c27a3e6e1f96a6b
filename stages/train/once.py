"""What a recipe without augmentation computes once instead of in every epoch: the test crops, and a frozen part's features."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from stages.shared.dataset import TrainSplit
from stages.shared.image_source import image_source
from stages.shared.model import train_mode, trainable_tail
from stages.shared.sampling import Draws, steps
from stages.shared.transforms import resize_center_crop


def without_augmentation(
    model: nn.Module,
    head: tuple[str, ...],
    split: TrainSplit,
    chosen: torch.Tensor,
    *,
    resize: int,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[nn.Module, TrainSplit, torch.Tensor | None]:
    """What to train, on which images, and their features (n, ...) where a frozen part needs to run only once.

    The images are the test crops of those `chosen` (n,) of `split`, in that order.
    """
    crops = fixed_crops(split, chosen, resize, crop)
    tail = trainable_tail(model, head)
    if tail is None:
        return model, crops, None
    features = compute_features(
        model, tail, crops.pixels, mean=mean, std=std, batch_size=batch_size, device=device, precision=precision
    )
    return nn.Sequential(tail, nn.Flatten(1)), crops, features


def fixed_crops(split: TrainSplit, chosen: torch.Tensor, resize: int, crop: int) -> TrainSplit:
    """The images `chosen` (n,) of `split` as the test transform cuts them: pixels (n, crop, crop, 3) uint8."""
    pixels = np.empty((len(chosen), crop, crop, 3), dtype=np.uint8)
    for row, i in enumerate(tqdm(chosen.tolist(), desc="test crops", disable=None, leave=False)):
        height, width = split.sizes[i]
        pixels[row] = resize_center_crop(split.pixels[i, :height, :width], resize, crop)
    return TrainSplit(pixels, np.full((len(chosen), 2), crop, dtype=np.int32), np.asarray(split.labels)[chosen.numpy()])


@torch.no_grad()
def compute_features(
    model: nn.Module,
    tail: nn.Module,
    pixels: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> torch.Tensor:
    """What `tail`, the trained end of `model`, is given for each of the uint8 (n, crop, crop, 3) pixels: (n, ...), on `device`.

    Computed as a training step would: in training mode, where a part that is frozen whole acts as in inference.
    """
    start, crop = time.perf_counter(), pixels.shape[1]
    dtype = torch.float64 if precision == torch.float64 else torch.float32
    model.to(device, dtype).to(memory_format=torch.channels_last)
    train_mode(model)
    fetch, images = image_source(pixels, batch_size, crop, mean, std, dtype, device, compiled=False)
    index = torch.arange(len(pixels))
    whole = torch.tensor([0, 0, crop, crop]).expand(len(index), 4)
    seen: list[torch.Tensor] = []
    hook = tail.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))  # dropout may write into it
    for batch in steps(Draws(index, whole, torch.zeros_like(index, dtype=torch.bool)), batch_size):
        fetch(batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            model(images(Draws(*(part.to(device) for part in batch))))
    hook.remove()
    features = torch.cat(seen)
    print(f"features of {len(features)} images computed once, in {time.perf_counter() - start:.1f} s", flush=True)
    return features
