"""The peers' training loops, each written from its description.

A way has a loader, which yields host batches, and a training loop over host batches. d2l's own timer runs over ready
batches; end to end runs over the loader.

d2l          "Fine-Tuning" and d2l.train_ch13 (https://d2l.ai/chapter_computer-vision/fine-tuning.html)
torchvision  references/classification/train.py (https://github.com/pytorch/vision)
timm         train.py and timm.data.loader (https://github.com/huggingface/pytorch-image-models)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.workload import HEAD_LR_MULTIPLIER, LR, MEAN, STD, WEIGHT_DECAY

Batch = tuple[torch.Tensor, torch.Tensor]  # images (b, 3, crop, crop), labels (b,)


@dataclass(frozen=True)
class Way:
    loader: Iterable[Batch]
    train: Callable[[Iterable[Batch]], int]  # trains on every batch, returns how many images


class Photos(Dataset):
    """JPEG files and labels, as torchvision's ImageFolder yields them."""

    def __init__(self, files: Sequence[tuple[str, int]], transform: Callable[[Image.Image], Any]):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.files[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


def book_transform(crop: int) -> Callable[[Image.Image], torch.Tensor]:
    return transforms.Compose([
        transforms.RandomResizedCrop(crop),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip


def d2l(
    files: Sequence[tuple[str, int]],
    model: nn.Module,
    crop: int,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Way:
    """float32, NCHW, a loader without workers whatever `num_workers`; loss and accuracy are read after every batch."""
    loader = DataLoader(Photos(files, book_transform(crop)), batch_size=batch_size, shuffle=True)
    model = model.to(device)
    train_batch = d2l_step(model, book_optimizer(model), device)

    def train(batches: Iterable[Batch]) -> int:
        return sum(train_batch(*batch)[2] for batch in batches)

    return Way(loader, train)


def book_optimizer(model: nn.Module, lr: float = LR, head_lr_multiplier: float = HEAD_LR_MULTIPLIER) -> torch.optim.SGD:
    """SGD with two rates, as the book's train_fine_tuning(param_group=True) makes it."""
    backbone = [parameter for name, parameter in model.named_parameters() if not name.startswith("fc.")]
    head = list(model.get_submodule("fc").parameters())
    groups: list[dict[str, Any]] = [{"params": backbone}, {"params": head, "lr": lr * head_lr_multiplier}]
    return torch.optim.SGD(groups, lr=lr, weight_decay=WEIGHT_DECAY)


def d2l_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], tuple[float, float, int]]:
    """train_batch_ch13: returns the batch's summed loss, how many were right, how many there were."""

    def train_batch(images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, int]:
        images, labels = images.to(device), labels.to(device)
        model.train()
        optimizer.zero_grad()
        logits = model(images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        losses.sum().backward()
        optimizer.step()
        return float(losses.detach().sum()), float((logits.argmax(1) == labels).sum()), len(labels)

    return train_batch


def torchvision_references(
    files: Sequence[tuple[str, int]],
    model: nn.Module,
    crop: int,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Way:
    """Workers and pinned memory, channels last, float16 autocast with a gradient scaler; loss and top-1 read every batch."""
    loader = DataLoader(
        Photos(files, book_transform(crop)), batch_size=batch_size, shuffle=True, num_workers=num_workers,
        pin_memory=device.type == "cuda", persistent_workers=num_workers > 0,
    )  # fmt: skip
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type)

    def train(batches: Iterable[Batch]) -> int:
        model.train()
        images_seen = 0
        for images, labels in batches:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.float16):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss.item(), (logits.argmax(1) == labels).float().mean().item()
            images_seen += len(labels)
        return images_seen

    return Way(loader, train)


def timm(
    files: Sequence[tuple[str, int]],
    model: nn.Module,
    crop: int,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Way:
    """uint8 collate, normalised on the device in a side stream, channels last, autocast, compiled; the loss read at the end.

    More than timm's defaults, in its favour: bfloat16 needs no scaler, no colour jitter, no reading of the loss on the way.
    """
    crop_and_flip = transforms.Compose(
        [transforms.RandomResizedCrop(crop), transforms.RandomHorizontalFlip(), to_uint8]
    )
    loader = DataLoader(
        Photos(files, crop_and_flip), batch_size=batch_size, shuffle=True, num_workers=num_workers, drop_last=True,
        collate_fn=fast_collate, pin_memory=device.type == "cuda", persistent_workers=num_workers > 0,
    )  # fmt: skip
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=2e-5)
    forward = torch.compile(model) if device.type == "cuda" else model

    def train(batches: Iterable[Batch]) -> int:
        model.train()
        images_seen, loss = 0, torch.zeros(())
        for images, labels in prefetch(batches, device):
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            images_seen += len(labels)
        loss.item()
        return images_seen

    return Way(loader, train)


def to_uint8(image: Image.Image) -> np.ndarray:
    return np.array(image).transpose(2, 0, 1)


def fast_collate(samples: Sequence[tuple[np.ndarray, int]]) -> Batch:
    images = torch.zeros(len(samples), *samples[0][0].shape, dtype=torch.uint8)
    for row, (image, _) in zip(images, samples, strict=True):
        row += torch.from_numpy(image)
    return images, torch.tensor([label for _, label in samples])


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The next batch is copied and normalised in a stream of its own while this one is worked on."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    ready: Batch | None = None
    for images, labels in batches:
        with torch.cuda.stream(stream):  # None: no effect
            images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            following = (images.float().sub_(mean).div_(std), labels.to(device, non_blocking=True))
        if ready is not None:
            yield ready
        if stream is not None:
            torch.cuda.current_stream(device).wait_stream(stream)
            for tensor in following:
                tensor.record_stream(torch.cuda.current_stream(device))
        ready = following
    if ready is not None:
        yield ready
