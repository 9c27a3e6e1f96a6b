"""Compute what the frozen source network makes of every image: python -m stages.features.

artifacts/features/train.safetensors   crop, mirror   float32 (n, d): each training image's test crop, and that mirrored
artifacts/features/test.safetensors    crop           float32 (m, d): no label comes with it

Features are what the network's last layer, its head, is given. They are computed once for all who judge images by them.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.dataset import TrainSplit, fixed_crops, load_manifest, load_test_pixels, load_train_split
from stages.shared.feature_extraction import compute_features
from stages.shared.files import replacing
from stages.shared.model import build_model, head_module, head_parameters, load_source
from stages.shared.params import load_params
from stages.shared.reproducibility import Execution, choose_device, choose_precision, describe_machine
from stages.shared.transforms import Transform

CHUNK = 1024  # images whose crops lie in memory at a time
BATCH = 128  # images that the network takes at a time


def main() -> None:
    params, transform = load_params(), load_manifest(artifacts.MANIFEST).transform
    device = choose_device(params.runtime.device)
    source = artifacts.source_weights(params.model.weights)
    model, head = load_network(params.model.architecture, source, transform.crop)
    print(f"features: {params.model.architecture} on {describe_machine(device)['device']}", flush=True)
    train, test = load_train_split(artifacts.TRAIN_SPLIT), load_test_pixels(artifacts.TEST_SPLIT)

    extract = partial(extract_features, model, head, transform=transform, device=device)
    crop, mirror = extract(train_chunks(train, transform), len(train), mirrored=(False, True), name="train")
    save_features(artifacts.FEATURES / "train.safetensors", {"crop": crop, "mirror": mirror})
    (crop,) = extract(test_chunks(test), len(test), mirrored=(False,), name="test")
    save_features(artifacts.FEATURES / "test.safetensors", {"crop": crop})


def load_network(architecture: str, weights: Path, crop: int) -> tuple[nn.Module, nn.Module]:
    """The source network, frozen whole, and its head: the layer whose input is the features."""
    model, head = build_model(architecture, 2, crop), head_parameters(architecture, crop)
    load_source(model, architecture, crop, load_file(weights), {})
    model.requires_grad_(False)
    return model, head_module(model, head)


def train_chunks(split: TrainSplit, transform: Transform) -> Iterator[np.ndarray]:
    """The training images under the test transform, uint8 (at most CHUNK, crop, crop, 3) at a time."""
    for start in range(0, len(split), CHUNK):
        yield fixed_crops(split, range(start, min(start + CHUNK, len(split))), transform)


def test_chunks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(pixels), CHUNK):
        yield pixels[start : start + CHUNK]


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
    """float32 (num_images, d) for each of `mirrored`: the images as they are, or left and right exchanged."""
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


def save_features(path: Path, features: dict[str, np.ndarray]) -> None:
    """Raises ValueError where a network made no number of an image."""
    broken = sum(int((~np.isfinite(values).all(axis=1)).sum()) for values in features.values())
    if broken:
        raise ValueError(
            f"{path}: NaN or infinite features for {broken} images; the source weights do not fit preprocess.mean and std"
        )
    with replacing(path) as part:
        part.write_bytes(save({name: np.ascontiguousarray(values) for name, values in features.items()}))


if __name__ == "__main__":
    run(main)
