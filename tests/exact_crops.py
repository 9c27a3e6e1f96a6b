"""Crops that are torchvision's bit for bit, as one tensor: what other ways of cutting are compared with."""

import numpy as np
import torch

from stages.shared.transforms import crop_into


def crop_each(
    pixels: torch.Tensor, index: torch.Tensor, boxes: torch.Tensor, flips: torch.Tensor, crop: int
) -> torch.Tensor:
    """`crop_into`'s crops of `pixels`, uint8 (n, side, side, 3), as uint8 (b, 3, crop, crop), channels last."""
    crops = np.empty((len(index), crop, crop, 3), dtype=np.uint8)
    crop_into(crops, pixels.numpy(), index, boxes, flips)
    return torch.from_numpy(crops).permute(0, 3, 1, 2)
