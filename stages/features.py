"""Compute what the frozen source network makes of every image: python -m stages.features.

artifacts/features/train.safetensors   crop, mirror   float32 (n, d): each training image's test crop, and that mirrored
artifacts/features/test.safetensors    crop           float32 (m, d): no label comes with it

Features are what the network's last layer, its head, is given. They are computed once for all who judge images by them.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.dataset import TrainSplit, fixed_crops, load_manifest, load_test_pixels, load_train_split
from stages.shared.encoded import Crops
from stages.shared.files import replacing
from stages.shared.frozen_features import extract_features, load_network
from stages.shared.params import load_params
from stages.shared.reproducibility import choose_device, describe_machine
from stages.shared.transforms import Transform

CHUNK = 1024  # images whose crops lie in memory at a time


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


def train_chunks(split: TrainSplit, transform: Transform) -> Iterator[np.ndarray]:
    """The training images under the test transform, uint8 (at most CHUNK, crop, crop, 3) at a time."""
    for start in range(0, len(split), CHUNK):
        yield fixed_crops(split, range(start, min(start + CHUNK, len(split))), transform)


def test_chunks(pixels: Crops) -> Iterator[np.ndarray]:
    for start in range(0, len(pixels), CHUNK):
        yield pixels[start : start + CHUNK]


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
