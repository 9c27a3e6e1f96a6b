"""The peers' loops over JPEG files, each written from its description; timm's are in timm_peer.py.

A peer's loader yields host batches, and its loop works on host batches: d2l's own timer runs over ready batches, end to
end runs over the loader.

d2l          "Fine-Tuning" and d2l.train_ch13 (https://d2l.ai/chapter_computer-vision/fine-tuning.html)
torchvision  train_one_epoch and evaluate of references/classification/train.py (https://github.com/pytorch/vision)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.workload import HEAD_LR_MULTIPLIER, LR, MEAN, STD, WEIGHT_DECAY

Batch = tuple[torch.Tensor, torch.Tensor]  # images (b, 3, crop, crop), labels (b,)


@dataclass(frozen=True)
class Setting:
    """All that a peer is told."""

    files: Sequence[tuple[str, int]]  # JPEG files and their labels
    crop: int
    batch_size: int
    num_workers: int
    device: torch.device


@dataclass(frozen=True)
class Peer:
    loader: Iterable[Batch]
    loop: Callable[[Iterable[Batch]], int]  # over every batch; returns how many images it saw


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


def d2l(model: nn.Module, setting: Setting) -> Peer:
    """float32, NCHW, a loader without workers; loss and accuracy are read after every batch."""
    loader = DataLoader(
        Photos(setting.files, book_transform(setting.crop)), batch_size=setting.batch_size, shuffle=True
    )
    model = model.to(setting.device)
    train_batch = d2l_step(model, book_optimizer(model), setting.device)

    def train(batches: Iterable[Batch]) -> int:
        return sum(train_batch(*batch)[2] for batch in batches)

    return Peer(loader, train)


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


def torchvision_references(model: nn.Module, setting: Setting) -> Peer:
    """Workers and pinned memory, channels last, float16 autocast with a gradient scaler; loss and top-1 read every batch."""
    loader, device = worker_loader(setting, book_transform(setting.crop), shuffle=True), setting.device
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

    return Peer(loader, train)


def torchvision_evaluation(model: nn.Module, setting: Setting) -> Peer:
    """Workers and pinned memory, float32, NCHW; loss and top-1 read every batch."""
    test_transform = transforms.Compose([
        transforms.Resize(setting.crop * 8 // 7),
        transforms.CenterCrop(setting.crop),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    loader, device = worker_loader(setting, test_transform, shuffle=False), setting.device
    model = model.to(device)

    @torch.inference_mode()
    def evaluate(batches: Iterable[Batch]) -> int:
        model.eval()
        images_seen = 0
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits = model(images)
            F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
            images_seen += len(labels)
        return images_seen

    return Peer(loader, evaluate)


def worker_loader(setting: Setting, transform: Callable[[Image.Image], torch.Tensor], *, shuffle: bool) -> DataLoader:
    return DataLoader(
        Photos(setting.files, transform), batch_size=setting.batch_size, shuffle=shuffle, num_workers=setting.num_workers,
        pin_memory=setting.device.type == "cuda", persistent_workers=setting.num_workers > 0,
    )  # fmt: skip
