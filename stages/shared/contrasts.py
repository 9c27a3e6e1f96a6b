"""How much a network's early maps vary over an image: its texture, which the last features have learnt to ignore."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LATEST = 2  # resolutions from the end whose maps are left out: the last features speak for them


class WithContrasts(nn.Module):
    """A network that returns, beside its logits, the contrasts of the last square maps of each resolution but the LATEST.

    Maps of more than a quarter of the image's side are halved first. A network without such maps, as one of linear layers alone,
    has the contrasts of the image itself, halved.
    (batch, 3, crop, crop) -> (batch, classes), (batch, channels of all those maps).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last: dict[int, torch.Tensor] = {}

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3] > 1:
                last[output.shape[2]] = output

        handles = [module.register_forward_hook(keep) for module in self.model.modules()]
        try:
            logits = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        sides = sorted(last)
        maps = [last[side] for side in sides[LATEST:] or sides] or [images]
        return logits, torch.cat([contrasts(halved(values, images.shape[2] // 4)) for values in maps], dim=1)


def halved(maps: torch.Tensor, most: int) -> torch.Tensor:
    """Means of 2 x 2 of maps larger than `most` pixels a side: reading these whole takes more time than all else here."""
    return F.avg_pool2d(maps, 2) if maps.shape[2] > most else maps


def contrasts(maps: torch.Tensor) -> torch.Tensor:
    """Each channel's standard deviation over the image, (batch, channels), scaled to length 1."""
    rest = maps - maps.mean((2, 3), keepdim=True)
    deviations = (rest * rest).mean((2, 3), keepdim=True).sqrt().flatten(1)
    length = (deviations * deviations).sum(1, keepdim=True).sqrt()
    return deviations / length.clamp(min=1e-12)
