"""timm's loops: its own loaders and optimizer, in the loops of its train.py and validate.py.

Source: https://github.com/huggingface/pytorch-image-models; the scripts themselves are not in the package.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import create_loader
from timm.data.loader import PrefetchLoader
from timm.optim import create_optimizer_v2
from torch import nn

from benchmarks.peers import Batch, Peer, Photos, Setting
from benchmarks.workload import MEAN, STD


def timm_training(model: nn.Module, setting: Setting) -> Peer:
    """uint8 collate, normalised on the device in a side stream, channels last, autocast, compiled; the loss read at the end.

    More than train.py's defaults, in its favour: bfloat16 needs no scaler, no colour jitter, no reading of the loss on the way.
    """
    loader, prefetch = timm_loader(setting, training=True)
    device = setting.device
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.001, momentum=0.9, weight_decay=2e-5)
    forward = torch.compile(model) if device.type == "cuda" else model

    def train(batches: Iterable[Batch]) -> int:
        model.train()
        images_seen, loss = 0, torch.zeros(())
        for images, labels in prefetch(batches):
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            images_seen += len(labels)
        loss.item()
        return images_seen

    return Peer(loader, train)


def timm_evaluation(model: nn.Module, setting: Setting) -> Peer:
    """Fed as `timm_training` is, in inference mode; loss and top-1 read every batch, as validate.py does."""
    loader, prefetch = timm_loader(setting, training=False)
    device = setting.device
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    forward = torch.compile(model) if device.type == "cuda" else model

    @torch.inference_mode()
    def evaluate(batches: Iterable[Batch]) -> int:
        images_seen = 0
        for images, labels in prefetch(batches):
            with torch.autocast(device.type, torch.bfloat16):
                logits = forward(images.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, labels)
            loss.item(), (logits.argmax(1) == labels).float().mean().item()
            images_seen += len(labels)
        return images_seen

    return Peer(loader, evaluate)


def timm_loader(
    setting: Setting, *, training: bool
) -> tuple[Iterable[Batch], Callable[[Iterable[Batch]], Iterable[Batch]]]:
    """timm's loader of uint8 host batches, and its prefetcher, which brings such batches to the device and normalises them."""
    photos: Any = Photos(setting.files, lambda image: image)  # timm names its own data sets; any map-style one will do
    created: Any = create_loader(
        photos, (3, setting.crop, setting.crop), setting.batch_size,
        is_training=training, color_jitter=0.0, mean=MEAN, std=STD, num_workers=setting.num_workers,
        pin_memory=setting.device.type == "cuda", persistent_workers=setting.num_workers > 0, device=setting.device,
    )  # fmt: skip
    return created.loader, lambda batches: PrefetchLoader(batches, MEAN, STD, device=setting.device)
