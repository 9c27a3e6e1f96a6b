"""Other libraries' defaults for fine-tuning, each written from its code. The backbone, the images and the test transform are ours.

fastai             fastai 2.8.12: fine_tune and fit_one_cycle (callback/schedule.py), vision_learner and create_head
                   (vision/learner.py), Adam and set_hyper (optimizer.py), aug_transforms (vision/augment.py). Its user names the
                   epochs: 5, as the book's recipe has
autogluon          autogluon.multimodal 1.6.3: configs/{optim,env,model}/default.yaml, get_grad_steps and top_k_average (learners/base.py),
                   data/trivial_augmenter.py; holdout as default_holdout_frac (autogluon.core) has it for less than 2,500 images
autogluon-medium   the same with presets="medium_quality", which is its own for a mobile network: lr 4e-4 (utils/presets.py)
ultralytics        ultralytics 8.4.190, classify: cfg/default.yaml, build_optimizer and _do_train (engine/trainer.py), ModelEMA
                   (utils/torch_utils.py), classify_augmentations (data/augment.py). Its last average is taken: it would choose the
                   best epoch on the test split, where no validation split is given
bit                BiT-HyperRule (Kolesnikov et al., Big Transfer, 2020; google-research/big_transfer: bit_hyperrule.py, bit_pytorch/train.py)
timm               timm 1.0's train.py with --pretrained and no other option, which its documentation names for fine-tuning: SGD
                   with Nesterov momentum, lr 0.1 * batch / 256, weight decay 2e-5, 300 epochs, 5 of them warm-up from 1e-5
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from benchmarks.quality.fine_tuning import (
    ConcatPool,
    accuracy,
    drawn,
    greedy_soup,
    set_rates,
    shuffled,
    source_model,
    split_by_decay,
    stratified_holdout,
    train,
)
from benchmarks.quality.tasks import ARCHITECTURE, CROP, RESIZE, Task
from stages.shared.model import head_parameters
from stages.shared.optimization import Optimization, param_groups

WHOLE = [v2.Resize((RESIZE, RESIZE), antialias=True), v2.CenterCrop(CROP)]  # what the test crop shows


def fastai(task: Task, seed: int) -> nn.Module:
    """One epoch at 2e-3 with the body frozen but for its batch norms, then five with the head at 1e-3 and the body at 1e-5."""
    body = source_model(task, seed).get_submodule("features")
    first, last = nn.Linear(2560, 512, bias=False), nn.Linear(512, len(task.class_names), bias=False)
    head = nn.Sequential(
        nn.BatchNorm1d(2560), nn.Dropout(0.25), first, nn.ReLU(inplace=True), nn.BatchNorm1d(512), nn.Dropout(0.5), last
    )
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight)
    model = nn.Sequential(body, ConcatPool(), head)
    groups = [*split_by_decay(body.named_parameters(), 0.01), *split_by_decay(head.named_parameters(), 0.01)]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.95, 0.99), eps=1e-5)
    some = partial(v2.RandomApply, p=0.75)
    augment = v2.Compose([
        v2.Resize((RESIZE, RESIZE), antialias=True), v2.RandomCrop(CROP), v2.RandomHorizontalFlip(),
        v2.RandomPerspective(0.2, p=0.75), some([v2.RandomRotation(10, v2.InterpolationMode.BILINEAR)]),
        some([v2.RandomAffine(0, scale=(1, 1.1))]), some([v2.ColorJitter(brightness=0.2)]), some([v2.ColorJitter(contrast=0.2)]),
    ])  # fmt: skip
    rows, batch_size = torch.arange(len(task.train)), min(64, len(task.train))
    norms = {id(p) for module in body.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
    for epochs, peaks, rising, div in ((1, (2e-4, 2e-3), 0.99, 25), (5, (1e-5, 1e-3), 0.3, 5)):
        for parameter in body.parameters():
            parameter.requires_grad_(epochs > 1 or id(parameter) in norms)
        order = shuffled(rows, batch_size, epochs, drop_last=True)
        train(model, optimizer, task, order, augment, partial(one_cycle, peaks=peaks, rising=rising, div=div))
    return model


def one_cycle(
    optimizer: torch.optim.Optimizer, progress: float, *, peaks: tuple[float, float], rising: float, div: float
) -> None:
    """Rates from peak / div by a cosine to the peak, then to peak / 1e5; momentum from 0.95 to 0.85 and back."""
    up = progress < rising
    share = (1 - math.cos(math.pi * (progress / rising if up else (progress - rising) / (1 - rising)))) / 2
    body, head = (peak * (1 / div + (1 - 1 / div) * share if up else 1 + (1e-5 - 1) * share) for peak in peaks)
    for group, rate in zip(optimizer.param_groups, (body, body, head, head), strict=True):
        group["lr"], group["betas"] = rate, (0.95 - 0.1 * share if up else 0.85 + 0.1 * share, 0.99)


def autogluon(task: Task, seed: int, lr: float = 1e-4) -> nn.Module:
    """Layer-wise rates and 128 images a step in parts of 8; the greedy soup of the three best of a validation each half epoch."""
    model = source_model(task, seed)
    rows, held_out = stratified_holdout(np.asarray(task.train.labels), 0.2, seed)
    layers: list[dict[str, Any]] = param_groups(
        model, head_parameters(ARCHITECTURE, CROP), Optimization(lr=lr, layer_decay=0.9)
    )
    groups = [
        {**group, "peak": layer["lr"]}
        for layer in layers
        for group in split_by_decay([("", parameter) for parameter in layer["params"]], 1e-3)
    ]
    optimizer = torch.optim.AdamW(groups)
    # TrivialAugment over the plain ranges of its operations, not torchvision's wide ones.
    augment = v2.Compose([*WHOLE, v2.RandomChoice([v2.RandAugment(1, strength) for strength in range(31)])])
    order = shuffled(rows, 8, epochs=20)
    each, best, since = max(1, len(order) // 40), list[tuple[float, int, dict[str, torch.Tensor]]](), 0

    def follow(optimizer: torch.optim.Optimizer, progress: float) -> None:
        warm = progress / 0.1
        set_rates(optimizer, warm if warm < 1 else (1 + math.cos(math.pi * (progress - 0.1) / 0.9)) / 2)

    def validate(batch: int) -> bool:
        nonlocal best, since
        if (batch + 1) % each == 0:
            score = accuracy(model, task, held_out)
            since = 0 if not best or score > best[0][0] else since + 1
            seen = [*best, (score, -batch, copy.deepcopy(model.state_dict()))]
            best = sorted(seen, key=lambda one: one[:2], reverse=True)[:3]
        return since >= 10

    epoch = math.ceil(len(rows) / 8)
    train(model, optimizer, task, order, augment, follow, parts=16, last_of=epoch, clip=1.0, after_batch=validate)
    return greedy_soup(model, [state for *_, state in best], task, held_out)


def ultralytics(task: Task, seed: int) -> nn.Module:
    """A hundred epochs of AdamW with RandAugment and erasing, and the running average of the weights."""
    model = source_model(task, seed)
    lr, order = round(0.002 * 5 / (4 + len(task.class_names)), 6), shuffled(torch.arange(len(task.train)), 16, 100)
    groups = split_by_decay(model.named_parameters(), 5e-4)
    optimizer = torch.optim.AdamW([{**group, "peak": lr} for group in groups], betas=(0.9, 0.999))
    augment = v2.Compose([
        v2.RandomResizedCrop(CROP, scale=(0.5, 1), antialias=True), v2.RandomHorizontalFlip(), v2.RandAugment(),
        v2.RandomErasing(0.4),
    ])  # fmt: skip
    average, updates = copy.deepcopy(model), 0

    def follow(optimizer: torch.optim.Optimizer, progress: float) -> None:
        set_rates(optimizer, min(1, progress / 0.03) * (1 - 0.99 * math.floor(100 * progress) / 100))

    @torch.no_grad()
    def update_average() -> None:
        nonlocal updates
        updates += 1
        for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - 0.9999 * (1 - math.exp(-updates / 2000)))

    def parts(batch: int) -> int:
        return round(min(4.0, 1 + 3 * batch / (0.03 * len(order))))

    train(model, optimizer, task, order, augment, follow, parts=parts, clip=10.0, after_step=update_average)
    return average


def bit(task: Task, seed: int) -> nn.Module:
    """A head of zeros and 500 steps of 512 images, in parts of 128; the rate falls by 10 at 200, 300 and 400."""
    model = source_model(task, seed)
    for name in head_parameters(ARCHITECTURE, CROP):
        nn.init.zeros_(model.get_parameter(name))
    optimizer = torch.optim.SGD([{"params": [*model.parameters()], "peak": 0.003}], momentum=0.9)
    augment = v2.Compose([
        v2.Resize((RESIZE, RESIZE), antialias=True), v2.RandomCrop(CROP), v2.RandomHorizontalFlip(),
    ])  # fmt: skip

    def follow(optimizer: torch.optim.Optimizer, progress: float) -> None:
        step = 500 * progress
        set_rates(optimizer, step / 100 if step < 100 else 0.1 ** sum(step > fall for fall in (200, 300, 400)))

    train(model, optimizer, task, drawn(len(task.train), 128, 2000), augment, follow, parts=4)
    return model


def timm(task: Task, seed: int) -> nn.Module:
    """Three hundred epochs of SGD from a high rate, with label smoothing and jittered colours."""
    model, batch_size = source_model(task, seed), min(128, len(task.train))
    peak, groups = 0.1 * batch_size / 256, split_by_decay(model.named_parameters(), 2e-5)
    optimizer = torch.optim.SGD([{**group, "peak": peak} for group in groups], lr=0.0, momentum=0.9, nesterov=True)
    augment = v2.Compose([
        v2.RandomResizedCrop(CROP, antialias=True), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4),
    ])  # fmt: skip

    def follow(optimizer: torch.optim.Optimizer, progress: float) -> None:
        epoch = math.floor(300 * progress)
        warm = (1e-5 + (peak - 1e-5) * epoch / 5) / peak
        set_rates(optimizer, warm if epoch < 5 else (1 + math.cos(math.pi * epoch / 300)) / 2)

    order = shuffled(torch.arange(len(task.train)), batch_size, 300, drop_last=True)
    train(model, optimizer, task, order, augment, follow, smoothing=0.1)
    return model


PEERS: dict[str, Callable[[Task, int], nn.Module]] = {
    "fastai": fastai,
    "autogluon": autogluon,
    "autogluon-medium": partial(autogluon, lr=4e-4),
    "ultralytics": ultralytics,
    "bit": bit,
    "timm": timm,
}
