"""Other libraries' defaults for fine-tuning, each written from its code; the backbone and the images are ours.

fastai        Learner.fine_tune (fastai/callback/schedule.py), vision_learner and create_head (fastai/vision/learner.py),
              aug_transforms' flip; the user names the epochs: 5, as the book's recipe has
autogluon     AutoGluon multimodal's defaults (multimodal/src/autogluon/multimodal/configs/optim/default.yaml: AdamW 1e-4,
              weight decay 1e-3, layer decay 0.9, cosine, 10 % warm-up, 20 epochs, patience 10, top-3 greedy soup;
              model: resize, center crop, trivial augment; 20 % of the images for validation)
ultralytics   classify (ultralytics/cfg/default.yaml: 100 epochs, batch 16, RandAugment, erasing 0.4, warm-up of 3 epochs, lr
              down to a hundredth; engine/trainer.py's `auto` optimizer: AdamW, round(0.002 * 5 / (4 + classes), 6))
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import v2

from benchmarks.quality.tasks import ARCHITECTURE, CROP, Task
from stages.shared.dataset import TrainSplit, fixed_crops
from stages.shared.model import build_model, head_parameters, load_source
from stages.shared.optimization import Optimization, param_groups
from stages.shared.transforms import normalize

Augment = Callable[[torch.Tensor], torch.Tensor]  # uint8 (3, height, width) to uint8 (3, CROP, CROP)


def fastai(task: Task, seed: int) -> nn.Module:
    """One frozen epoch at 2e-3, then five at 1e-3 for the head and a hundredth of it for the backbone, one cycle each."""
    features, head_module = source_model(task, seed).features, fastai_head(len(task.class_names))
    model = nn.Sequential(features, ConcatPool(), head_module)  # type: ignore[arg-type]
    backbone, head = list(features.parameters()), list(head_module.parameters())  # type: ignore[union-attr]
    batch_size = min(64, len(task.train))
    # The body is frozen, but for its batch norms.
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    frozen = {id(p) for p in backbone} - {id(p) for p in norms}
    for parameter in backbone:
        parameter.requires_grad_(id(parameter) not in frozen)
    one_cycle(model, [(norms, 2e-3), (head, 2e-3)], task, seed, epochs=1, batch_size=batch_size, rising=0.99, div=25)
    for parameter in backbone:
        parameter.requires_grad_(True)
    one_cycle(
        model, [(backbone, 1e-5), (head, 1e-3)], task, seed + 1, epochs=5, batch_size=batch_size, rising=0.3, div=5
    )
    return model


class ConcatPool(nn.Module):
    """AdaptiveConcatPool2d: (n, c, h, w) to (n, 2 c), each channel's maximum and mean."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)


def fastai_head(num_classes: int) -> nn.Module:
    """create_head: average and maximum pooled, two linear layers, each behind batch norm and dropout."""
    first, last = nn.Linear(2 * 1280, 512, bias=False), nn.Linear(512, num_classes, bias=False)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(
        nn.BatchNorm1d(2560), nn.Dropout(0.25), first, nn.ReLU(inplace=True), nn.BatchNorm1d(512), nn.Dropout(0.5), last
    )


def one_cycle(
    model: nn.Module,
    groups: list[tuple[list[nn.Parameter], float]],
    task: Task,
    seed: int,
    *,
    epochs: int,
    batch_size: int,
    rising: float,
    div: float,
) -> None:
    """fit_one_cycle: cosine up from lr / div, cosine down to lr / 1e5, momentum 0.95 to 0.85 and back; Adam, decay 0.01."""
    steps = epochs * (len(task.train) // batch_size)  # fastai drops the last batch
    matrices = [{"params": [p for p in own if p.dim() > 1], "weight_decay": 0.01, "peak": lr} for own, lr in groups]
    vectors = [{"params": [p for p in own if p.dim() <= 1], "weight_decay": 0.0, "peak": lr} for own, lr in groups]
    optimizer = torch.optim.AdamW([g for g in matrices + vectors if g["params"]], betas=(0.95, 0.99), eps=1e-5)

    def schedule(step: int) -> None:
        at = step / steps
        up = at < rising
        along = at / rising if up else (at - rising) / (1 - rising)
        part = (1 - math.cos(math.pi * along)) / 2
        for group in optimizer.param_groups:
            low, high = group["peak"] / div, group["peak"]
            group["lr"] = low + (high - low) * part if up else high + (group["peak"] / 1e5 - high) * part
            group["betas"] = (0.95 - 0.1 * part if up else 0.85 + 0.1 * part, 0.99)

    augment = v2.Compose([v2.RandomResizedCrop(CROP, scale=(0.35, 1), antialias=True), v2.RandomHorizontalFlip()])
    rows = torch.arange(len(task.train))
    for step, (images, labels) in enumerate(batches(task, rows, augment, seed, epochs, batch_size, drop_last=True)):
        schedule(step)
        train_step(model, optimizer, images, labels)


def autogluon(task: Task, seed: int) -> nn.Module:
    """Layer-wise rates, a validation at each half epoch, and the greedy soup of the three best."""
    model = source_model(task, seed)
    rows, held_out = stratified_holdout(np.asarray(task.train.labels), 0.2, seed)
    optimization = Optimization(lr=1e-4, layer_decay=0.9)
    groups: list[dict[str, Any]] = param_groups(model, head_parameters(ARCHITECTURE, CROP), optimization)
    optimizer = torch.optim.AdamW([{**group, "peak": group["lr"]} for group in groups], weight_decay=1e-3)
    batch_size, epochs = min(128, len(rows)), 20
    per_epoch = math.ceil(len(rows) / batch_size)
    steps, best, since = epochs * per_epoch, list[tuple[float, int, dict[str, torch.Tensor]]](), 0
    augment = v2.Compose([v2.Resize((CROP, CROP), antialias=True), v2.TrivialAugmentWide()])
    for step, (images, labels) in enumerate(batches(task, rows, augment, seed, epochs, batch_size)):
        warm = 0.1 * steps
        factor = step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        train_step(model, optimizer, images, labels)
        if (step + 1) % max(1, per_epoch // 2) == 0:
            score = accuracy(model, task, held_out)
            since = 0 if not best or score > best[0][0] else since + 1
            best = sorted([*best, (score, -step, copy.deepcopy(model.state_dict()))], key=lambda b: b[:2], reverse=True)
            best = best[:3]
            if since >= 10:
                break
    return greedy_soup(model, [state for *_, state in best], task, held_out)


def greedy_soup(
    model: nn.Module, states: list[dict[str, torch.Tensor]], task: Task, held_out: torch.Tensor
) -> nn.Module:
    """The best state, averaged with each of the others that does not lower the validation score."""
    taken, score = states[:1], -1.0
    model.load_state_dict(states[0])
    score = accuracy(model, task, held_out)
    for state in states[1:]:
        tried = [*taken, state]
        mean = {
            name: torch.stack([each[name].double() for each in tried]).mean(0).to(value.dtype)
            for name, value in state.items()
        }
        model.load_state_dict(mean)
        if accuracy(model, task, held_out) >= score:
            taken, score = tried, accuracy(model, task, held_out)
    mean = {
        name: torch.stack([each[name].double() for each in taken]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    model.load_state_dict(mean)
    return model


def ultralytics(task: Task, seed: int) -> nn.Module:
    """A hundred epochs of AdamW with RandAugment and erasing, and the running average of the weights."""
    model, rows = source_model(task, seed), torch.arange(len(task.train))
    lr = round(0.002 * 5 / (4 + len(task.class_names)), 6)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.999)
    )
    augment = v2.Compose([
        v2.RandomResizedCrop(CROP, scale=(0.5, 1), antialias=True), v2.RandomHorizontalFlip(), v2.RandAugment(),
        v2.RandomErasing(0.4),
    ])  # fmt: skip
    epochs, batch_size, average = 100, min(16, len(rows)), copy.deepcopy(model)
    per_epoch = math.ceil(len(rows) / batch_size)
    warm = max(3 * per_epoch, 100)
    for step, (images, labels) in enumerate(batches(task, rows, augment, seed, epochs, batch_size)):
        factor = (1 - step / (epochs * per_epoch)) * 0.99 + 0.01
        for group in optimizer.param_groups:
            group["lr"] = lr * factor * min(1, step / warm)
        train_step(model, optimizer, images, labels, clip=10.0)
        update_average(average, model, 0.9999 * (1 - math.exp(-(step + 1) / 2000)))
    return average


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)


PEERS = {"fastai": fastai, "autogluon": autogluon, "ultralytics": ultralytics}
NOT_RUN = {
    "BiT-HyperRule": "500 steps of 512 images: more than an hour a task and seed on one of these cores",
    "timm": "300 epochs are the default: more than an hour a task and seed on one of these cores",
}


def source_model(task: Task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(ARCHITECTURE, len(task.class_names), CROP)
    load_source(model, ARCHITECTURE, CROP, load_file(task.source), {})
    return model.to(memory_format=torch.channels_last)


def batches(
    task: Task, rows: torch.Tensor, augment: Augment, seed: int, epochs: int, batch_size: int, drop_last: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Augmented, normalised images (b, 3, CROP, CROP) and labels (b,), shuffled anew in every epoch; none of one image."""
    torch.manual_seed(seed)
    for _ in range(epochs):
        for chosen in rows[torch.randperm(len(rows))].split(batch_size):
            if len(chosen) < (batch_size if drop_last else 2):
                continue
            images = torch.stack([augment(image_of(task.train, int(row))) for row in chosen])
            labels = torch.from_numpy(np.asarray(task.train.labels)[chosen.numpy()])
            yield normalize(images, task.transform.mean, task.transform.std, torch.float32), labels


def image_of(split: TrainSplit, row: int) -> torch.Tensor:
    height, width = split.sizes[row]
    return torch.from_numpy(np.array(split.pixels[row, :height, :width])).permute(2, 0, 1)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, clip: float = 0.0
) -> None:
    model.train()
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def stratified_holdout(labels: np.ndarray, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to train on and rows held out, at least one of each class."""
    generator, held_out = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held_out.append(members[: max(1, round(fraction * len(members)))])
    out = np.concatenate(held_out)
    return torch.from_numpy(np.setdiff1d(np.arange(len(labels)), out)), torch.from_numpy(out)


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, rows: torch.Tensor) -> float:
    model.eval()
    crops = torch.from_numpy(fixed_crops(task.train, rows, task.transform)).permute(0, 3, 1, 2)
    logits = model(normalize(crops, task.transform.mean, task.transform.std, torch.float32))
    return float((logits.argmax(1) == torch.from_numpy(np.asarray(task.train.labels))[rows]).float().mean())
