"""Drawn photos that every contestant trains on, as JPEG files for the peers and as our training split."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from stages.shared.dataset import TestSplit, TrainSplit, load_test_split, load_train_split, pack_canvas
from stages.shared.model import build_model
from stages.shared.transforms import resize_center_crop
from synthetic_images import TARGET_CLASSES, draw_target

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARCHITECTURE = "resnet18"
LR, HEAD_LR_MULTIPLIER, WEIGHT_DECAY = 0.00005, 10, 0.001  # params.yaml's finetune


@dataclass(frozen=True)
class Size:
    side: int = 512  # longest side of a photo, pixels
    resize: int = 256
    crop: int = 224
    num_drawn: int = 64  # different photos
    num_resident: int = 64  # images of the training split; the drawn ones over and over
    batch_size: int = 128
    rounds: int = 5
    steps: int = 1  # a round of the rows that time steps
    peer_images: int = 128  # a round of the peers' end-to-end rows
    own_images: int = 128  # a round of our end-to-end rows
    num_workers: int = 16  # of the torchvision and timm loaders
    test_images: int = 128
    startup_images: int = 128  # a training set, 5 epochs of which are run from the start of a process to its end
    startup_runs: int = 2
    growth_images: int = 64  # 1x
    processes: tuple[int, ...] = (1, 2, 4)
    compiled: bool = True


CPU = Size(batch_size=64)
CUDA = Size(
    num_drawn=128,
    rounds=9,
    num_resident=2048,
    steps=30,
    peer_images=2048,
    own_images=128 * 64,
    test_images=4096,
    startup_images=2000,
    growth_images=128 * 16,
)
QUICK = Size(
    side=48, resize=36, crop=32, num_drawn=8, num_resident=8, batch_size=4, rounds=2, peer_images=8, own_images=8,
    num_workers=0, test_images=8, startup_images=8, startup_runs=1, growth_images=4, processes=(1, 2), compiled=False,
)  # fmt: skip


def choose_size(device: torch.device, quick: bool) -> Size:
    if quick:
        return QUICK
    if device.type == "cuda":
        return replace(CUDA, processes=tuple(n for n in CUDA.processes if n <= torch.cuda.device_count()))
    return CPU


@dataclass(frozen=True)
class Workload:
    files: list[tuple[str, int]]  # JPEG files and their labels
    train: TrainSplit
    test: TestSplit


def make_workload(size: Size, folder: Path) -> Workload:
    """Draw the photos; write them to `folder` as JPEG files and, packed as preprocess does, as splits."""
    labels = np.arange(size.num_drawn, dtype=np.int64) % len(TARGET_CLASSES)
    images = [draw_target(TARGET_CLASSES[label], i, 0, size.side) for i, label in enumerate(labels)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.jpg", quality=90)
    pixels, sizes = pack_canvas(images, size.side)
    crops = np.stack([resize_center_crop(image, size.resize, size.crop) for image in images])
    resident, tests = (np.arange(num) % size.num_drawn for num in (size.num_resident, size.test_images))
    (folder / "test/images").mkdir(parents=True)
    for name, array in {
        "pixels": pixels[resident], "sizes": sizes[resident], "labels": labels[resident],
        "test/images/pixels": crops[tests], "test/labels": labels[tests],
    }.items():  # fmt: skip
        np.save(folder / f"{name}.npy", array)
    return load_workload(size, folder)


def load_workload(size: Size, folder: Path) -> Workload:
    """Read what `make_workload` wrote, in another process too."""
    files = [(str(folder / f"{i}.jpg"), i % len(TARGET_CLASSES)) for i in range(size.num_drawn)]
    return Workload(files, load_train_split(folder), load_test_split(folder / "test"))


def make_model(crop: int) -> nn.Module:
    """A model with the same weights for everyone."""
    torch.manual_seed(0)
    return build_model(ARCHITECTURE, len(TARGET_CLASSES), crop)


def chosen_images(num: int, num_resident: int) -> torch.Tensor:
    """Indices (num,) into a split of `num_resident` images: all of them, over and over."""
    return torch.arange(num) % num_resident
