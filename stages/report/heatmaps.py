"""Map where a network looked, by Grad-CAM, and lay the map over the picture.

Grad-CAM (Selvaraju et al., 2017): the last maps of the network, weighted by how the class's logit changes with their means.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from stages.shared.transforms import Transform, network_input

COLOR = (210, 96, 26)  # of what speaks for the class
OPACITY = 0.65  # where it speaks loudest


def grad_cam(model: nn.Module, crops: np.ndarray, classes: Sequence[int], transform: Transform) -> np.ndarray | None:
    """float32 (n, rows, columns) in [0, 1] of uint8 crops (n, crop, crop, 3), each for its class; 1 is the most of a picture.

    None for networks without such maps: transformers.
    """
    if any("Attention" in type(module).__name__ for module in model.modules()):
        return None
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            seen[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    with torch.enable_grad():
        images = torch.from_numpy(network_input(crops, transform)).requires_grad_()
        logits = model(images)
    for hook in hooks:
        hook.remove()
    if not seen:
        return None
    maps = seen[0]
    (slopes,) = torch.autograd.grad(logits[torch.arange(len(crops)), torch.tensor(classes)].sum(), maps)
    heat = (slopes.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach()
    return np.asarray((heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).numpy(), dtype=np.float32)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 (height, width, 3): the picture, coloured where the map (rows, columns) is high."""
    height, width = pixels.shape[:2]
    mask = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    share = OPACITY * mask[..., None]
    return np.asarray((1 - share) * pixels + share * np.array(COLOR), dtype=np.uint8)
