"""Compute the input of a network's trained end for each image, once instead of in every epoch."""

import torch
from torch import nn

from stages.shared.encoded import Pixels
from stages.shared.image_source import image_source
from stages.shared.model import train_mode
from stages.shared.reproducibility import Execution
from stages.shared.sampling import Draws, batches
from stages.shared.transforms import Transform


@torch.no_grad()
def compute_features(
    model: nn.Module,
    tail: nn.Module,
    pixels: Pixels,
    transform: Transform,
    batch_size: int,
    execution: Execution,
    *,
    mirrored: bool = False,
) -> torch.Tensor:
    """The input of `tail`, a module of `model`, for each of the uint8 (n, crop, crop, 3) pixels: (n, ...), on `device`.

    Computed as a training step would: in training mode, where a part that is frozen whole acts as in inference.
    """
    crop, device = pixels.shape[1], execution.device
    model.to(device, execution.dtype).to(memory_format=torch.channels_last)
    train_mode(model)
    rows = min(batch_size, len(pixels))
    fetch, cut = image_source(pixels, transform, rows, execution.dtype, device, compiled=False)
    index = torch.arange(len(pixels))
    whole = torch.tensor([0, 0, crop, crop]).expand(len(index), 4)
    seen: list[torch.Tensor] = []
    hook = tail.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))  # dropout may write into it
    for batch in batches(Draws(index, whole, torch.full_like(index, mirrored, dtype=torch.bool)), batch_size):
        fetch(batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=execution.autocast):
            model(cut(batch.each(lambda part: part.to(device))))
    hook.remove()
    return torch.cat(seen)
