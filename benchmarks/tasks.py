"""The image sets that accuracy is compared on, with source weights to transfer: drawn here, or real photos that lie beside."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.workload import ARCHITECTURE, MEAN, STD
from stages.shared.dataset import TrainSplit, pack_canvas
from stages.shared.model import build_model
from stages.shared.optimization import Optimization, param_groups
from stages.shared.reproducibility import Execution, choose_precision
from stages.shared.sampling import Sampling
from stages.shared.training import fit
from stages.shared.transforms import Transform
from synthetic_images import SOURCE_CLASSES, TARGET_CLASSES, draw_source, draw_target

Labelled = list[tuple[np.ndarray, int]]  # uint8 (height, width, 3) and its class


@dataclass(frozen=True)
class Task:
    name: str
    train: Labelled
    test: Labelled
    source: dict[str, torch.Tensor]  # the source model's state
    resize: int
    crop: int
    batch_size: int
    epochs: int


def drawn_task(device: torch.device, quick: bool) -> Task:
    """Hot dogs and look-alikes, and a source model trained on other drawn things."""
    side, crop, num_train, num_test, num_source, epochs = (
        (48, 32, 8, 8, 20, 1) if quick else (96, 64, 300, 300, 2000, 8)
    )
    source = train_source(num_source, side, crop, epochs, device)
    train, test = draw(range(num_train), side), draw(range(num_train, num_train + num_test), side)
    return Task("drawn", train, test, source, crop * 9 // 8, crop, 4 if quick else 32, 1 if quick else 8)


def draw(indices: range, side: int) -> Labelled:
    labels = [i % len(TARGET_CLASSES) for i in indices]
    return [(draw_target(TARGET_CLASSES[label], i, 0, side), label) for i, label in zip(indices, labels, strict=True)]


def train_source(num_images: int, side: int, crop: int, epochs: int, device: torch.device) -> dict[str, torch.Tensor]:
    """SGD with momentum on the mean loss, at a constant rate: a few features worth transferring."""
    labels = np.arange(num_images, dtype=np.int64) % len(SOURCE_CLASSES)
    pixels, sizes = pack_canvas(
        [draw_source(SOURCE_CLASSES[label], i, 0, side) for i, label in enumerate(labels)], side
    )
    torch.manual_seed(0)
    model = build_model(ARCHITECTURE, len(SOURCE_CLASSES), crop)
    batch_size = min(64, num_images)
    optimization = Optimization(0.03, momentum=0.9, weight_decay=0.0005, loss="mean")
    fit(
        model,
        param_groups(model, (), optimization),
        TrainSplit(pixels, sizes, labels),
        Transform(crop, crop, MEAN, STD),
        Sampling(torch.arange(num_images), 0, epochs, batch_size),
        optimization,
        Execution(device, choose_precision("auto", device)),
        name="source",
    )
    return {name: value.cpu() for name, value in model.state_dict().items()}


def real_task(folder: Path) -> Task:
    """The hot dogs of `folder`/hotdog-small.zip, and resnet18-food100.pth's weights; 112 px keep it to minutes on a CPU."""
    source = torch.load(folder / "resnet18-food100.pth", map_location="cpu", weights_only=True)
    with zipfile.ZipFile(folder / "hotdog-small.zip") as archive:
        train, test = (photos(archive, split) for split in ("train", "test"))
    return Task("photos", train, test, source, resize=128, crop=112, batch_size=32, epochs=10)


def photos(archive: zipfile.ZipFile, split: str) -> Labelled:
    """The photos of a split in d2l's layout, hotdog/<split>/<class>/*.jpg."""
    found = []
    for name in sorted(archive.namelist()):
        parts = name.split("/")
        if len(parts) == 4 and parts[1] == split and parts[3]:
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            found.append((np.asarray(image), TARGET_CLASSES.index(parts[2])))
    return found
