"""Compute what the frozen source network makes of every image: python -m stages.features.

artifacts/features/train.safetensors   crop, mirror   float32 (n, d): each training image's test crop, and that mirrored
                                       corners        float32 (4, n, d): three quarters of its height and width, from each corner,
                                                      two of them mirrored; only of at most FEW images
artifacts/features/test.safetensors    crop           float32 (m, d): no label comes with it
artifacts/features/train-SIZE.safetensors  crop, mirror  as in train.safetensors, at inspect.size pixels where those are more

Features are what the network's last layer, its head, is given. They are computed once for all who judge images by them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.dataset import CHUNK, TrainSplit, chunks_of_crops, load_manifest, load_test_pixels, load_train_split
from stages.shared.encoded import Crops
from stages.shared.files import replacing
from stages.shared.frozen_features import extract_features, load_network
from stages.shared.params import load_params
from stages.shared.reproducibility import choose_device, describe_machine
from stages.shared.transforms import Transform, crop_into

FEW = 1000  # images of the split, of which a recipe may take a part, up to which a head learns much from more views of each
ZOOM = 0.75  # a corner's share of the height and the width
CORNERS = ((0, 0, False), (0, 1, True), (1, 0, True), (1, 1, False))  # bottom? right? mirrored?


def main() -> None:
    params, transform = load_params(), load_manifest(artifacts.MANIFEST).transform
    device, size = choose_device(params.runtime.device), params.inspect.size
    architecture, source = params.model.architecture, artifacts.source_weights(params.model.weights)
    print(f"features: {architecture} on {describe_machine(device)['device']}", flush=True)
    train, test = load_train_split(artifacts.TRAIN_SPLIT), load_test_pixels(artifacts.TEST_SPLIT)

    extract = extractor(architecture, source, transform, device)
    found = both_ways(extract, train, transform)
    if len(train) <= FEW:
        corners = corner_chunks(train, transform)
        found["corners"] = np.stack([extract(c, len(train), mirrored=(False,), name="corners")[0] for c in corners])
    save_features(artifacts.FEATURES / "train.safetensors", found)
    (crop,) = extract(test_chunks(test), len(test), mirrored=(False,), name="test")
    save_features(artifacts.FEATURES / "test.safetensors", {"crop": crop})
    if size and size > transform.crop:
        larger = enlarged(transform, size)
        found = both_ways(extractor(architecture, source, larger, device), train, larger)
        save_features(artifacts.inspected_features(size, transform.crop), found)


def extractor(
    architecture: str, source: Path, transform: Transform, device: torch.device
) -> Callable[..., list[np.ndarray]]:
    """`extract_features` of the network of the weights in `source`, for what `transform` cuts."""
    model, head = load_network(architecture, source, transform.crop)
    return partial(extract_features, model, head, transform=transform, device=device)


def enlarged(transform: Transform, size: int) -> Transform:
    """The same cut of an image, at `size` pixels."""
    return replace(transform, resize=round(size * transform.resize / transform.crop), crop=size)


def both_ways(
    extract: Callable[..., list[np.ndarray]], train: TrainSplit, transform: Transform
) -> dict[str, np.ndarray]:
    """`crop` and `mirror`, float32 (n, d), of the training images under `transform`."""
    chunks = chunks_of_crops(train, range(len(train)), transform, CHUNK)
    crop, mirror = extract(chunks, len(train), mirrored=(False, True), name=f"train at {transform.crop} px")
    return {"crop": crop, "mirror": mirror}


def corner_chunks(split: TrainSplit, transform: Transform) -> Iterator[Iterator[np.ndarray]]:
    """For each of CORNERS that corner of every training image, uint8 (at most CHUNK, crop, crop, 3) at a time."""
    sizes = torch.from_numpy(np.asarray(split.sizes)).long()
    side = (ZOOM * sizes).ceil().long()
    for bottom, right, mirrored in CORNERS:
        boxes = torch.cat([(sizes - side) * torch.tensor([bottom, right]), side], dim=1)
        yield (cut(split, rows, boxes, transform.crop, mirrored) for rows in torch.arange(len(split)).split(CHUNK))


def cut(split: TrainSplit, rows: torch.Tensor, boxes: torch.Tensor, crop: int, mirrored: bool) -> np.ndarray:
    """The `boxes` (n, 4) of the training images `rows` (b,), as a training crop is cut: uint8 (b, crop, crop, 3)."""
    crops = np.empty((len(rows), crop, crop, 3), dtype=np.uint8)
    crop_into(crops, split.pixels, rows, boxes[rows], torch.full((len(rows),), mirrored))
    return crops


def test_chunks(pixels: Crops) -> Iterator[np.ndarray]:
    for start in range(0, len(pixels), CHUNK):
        yield pixels[start : start + CHUNK]


def save_features(path: Path, features: dict[str, np.ndarray]) -> None:
    """Raises ValueError where a network made no number of an image."""
    broken = sum(int((~np.isfinite(values).all(axis=-1)).sum()) for values in features.values())
    if broken:
        raise ValueError(
            f"{path}: NaN or infinite features for {broken} views of images; the source weights do not fit preprocess.mean and std"
        )
    with replacing(path) as part:
        part.write_bytes(save({name: np.ascontiguousarray(values) for name, values in features.items()}))


if __name__ == "__main__":
    run(main)
