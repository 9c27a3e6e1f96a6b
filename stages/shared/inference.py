"""Logits of a model over a test split."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from stages.shared.transforms import normalize


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    pixels: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    precision: torch.dtype = torch.float32,
    batch_size: int = 256,
) -> np.ndarray:
    """Run `model` in eval mode over uint8 (n, height, width, 3) pixels; returns float32 (n, classes).

    `precision` float64 computes in double precision (the reference), bfloat16 under autocast. The model is moved to `device`.
    """
    dtype = torch.float64 if precision == torch.float64 else torch.float32
    model = model.to(device, dtype).to(memory_format=torch.channels_last).eval()
    logits = []
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(np.array(pixels[start : start + batch_size])).to(device).permute(0, 3, 1, 2)
        images = normalize(batch, mean, std, dtype)
        if precision == torch.bfloat16:
            with torch.autocast(device.type, torch.bfloat16):
                logits.append(model(images).float())
        else:
            logits.append(model(images))
    return torch.cat(logits).to("cpu", torch.float32 if dtype != torch.float64 else torch.float64).numpy()
