"""Compute the frozen source network's features of images, the input of its head, by which images are compared and judged."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from stages.shared.feature_extraction import compute_features
from stages.shared.model import build_model, head_module, head_parameters, load_source
from stages.shared.reproducibility import Execution, choose_precision
from stages.shared.transforms import Transform

BATCH = 128  # images that the network takes at a time


def load_network(architecture: str, weights: Path, crop: int) -> tuple[nn.Module, nn.Module]:
    """The source network, frozen whole, and its head: the layer whose input is the features."""
    model, head = build_model(architecture, 2, crop), head_parameters(architecture, crop)
    load_source(model, architecture, crop, load_file(weights), {})
    model.requires_grad_(False)
    return model, head_module(model, head)


def extract_features(
    model: nn.Module,
    head: nn.Module,
    chunks: Iterable[np.ndarray],
    num_images: int,
    *,
    transform: Transform,
    device: torch.device,
    mirrored: Sequence[bool],
    name: str,
) -> list[np.ndarray]:
    """float32 (num_images, d) for each of `mirrored`: the images as they are, or left and right exchanged.

    `chunks` are uint8 (at most what memory holds, crop, crop, 3), together `num_images`.
    """
    execution = Execution(device, choose_precision("auto", device))
    parts: list[list[np.ndarray]] = [[] for _ in mirrored]
    with tqdm(total=num_images, desc=f"features of {name}", unit=" images", disable=None) as bar:
        for pixels in chunks:
            for part, flip in zip(parts, mirrored, strict=True):
                features = compute_features(model, head, pixels, transform, BATCH, execution, mirrored=flip)
                part.append(flatten(features).cpu().numpy())
            bar.update(len(pixels))
    return [np.concatenate(part) for part in parts]


def flatten(features: torch.Tensor) -> torch.Tensor:
    """float32 (n, d). Where the head is a convolution, as SqueezeNet's, its input's maps are averaged over their area."""
    return features.float().mean((2, 3)) if features.dim() == 4 else features.float().flatten(1)
