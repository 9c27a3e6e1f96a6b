"""The parts that the peers' recipes are made of: the source model, batches, training steps, validation, soup."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from benchmarks.quality.tasks import ARCHITECTURE, CROP, Task
from stages.shared.dataset import TrainSplit, fixed_crops
from stages.shared.model import build_model, load_source
from stages.shared.transforms import normalize

Order = Sequence[torch.Tensor]  # each batch's rows of the training split, int64 (b,)
Augment = Callable[[torch.Tensor], torch.Tensor]  # uint8 (3, height, width) to uint8 (3, CROP, CROP)
Follow = Callable[[torch.optim.Optimizer, float], None]  # sets the rates for a progress in [0, 1)


def source_model(task: Task, seed: int) -> nn.Module:
    """The source model under a new head; all that is drawn from here on is drawn from `seed`."""
    torch.manual_seed(seed)
    model = build_model(ARCHITECTURE, len(task.class_names), CROP)
    load_source(model, ARCHITECTURE, CROP, load_file(task.source), {})
    return model.to(memory_format=torch.channels_last)


class ConcatPool(nn.Module):
    """AdaptiveConcatPool2d: (n, c, h, w) to (n, 2 c), each channel's maximum and mean."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)


def shuffled(rows: torch.Tensor, batch_size: int, epochs: int, drop_last: bool = False) -> Order:
    """All `rows` in every epoch, in a new order each; a batch of one image, which batch norm refuses, is left out."""
    order = [part for _ in range(epochs) for part in rows[torch.randperm(len(rows))].split(batch_size)]
    return [part for part in order if len(part) >= (batch_size if drop_last else 2)]


def drawn(num_images: int, batch_size: int, batches: int) -> Order:
    """Rows drawn with replacement."""
    return [*torch.randint(num_images, (batches, batch_size))]


def split_by_decay(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two of an optimizer's groups: matrices with `weight_decay`, vectors (biases, norms) without."""
    own = [parameter for _, parameter in parameters]
    return [
        {"params": [parameter for parameter in own if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in own if parameter.dim() <= 1], "weight_decay": 0.0},
    ]


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's lr: its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    order: Order,
    augment: Augment,
    follow: Follow,
    *,
    parts: int | Callable[[int], int] = 1,
    last_of: int = 0,
    smoothing: float = 0.0,
    clip: float = 0.0,
    after_step: Callable[[], None] = lambda: None,
    after_batch: Callable[[int], bool] = lambda batch: False,
) -> None:
    """Train on the batches of `order`; `parts` of them, a number or a function of the batch's number, make a step.

    `last_of` batches are an epoch, whose last one ends a step too (0: it does not). `clip` is the gradient's largest norm,
    0 for any. Ends early when `after_batch` of the batch's number is true.
    """
    since = 0
    for batch, rows in enumerate(order):
        model.train()
        follow(optimizer, batch / len(order))
        images, labels = load(task, rows, augment)
        wanted = parts(batch) if callable(parts) else parts
        (F.cross_entropy(model(images), labels, label_smoothing=smoothing) / wanted).backward()
        since += 1
        if since >= wanted or (last_of and (batch + 1) % last_of == 0):
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            since = 0
            after_step()
        if after_batch(batch):
            return


def load(task: Task, rows: torch.Tensor, augment: Augment) -> tuple[torch.Tensor, torch.Tensor]:
    """Augmented, normalised images float32 (b, 3, CROP, CROP) and labels (b,)."""
    images = torch.stack([augment(image_of(task.train, int(row))) for row in rows])
    labels = torch.from_numpy(np.asarray(task.train.labels)[rows.numpy()])
    return normalize(images, task.transform.mean, task.transform.std, torch.float32), labels


def image_of(split: TrainSplit, row: int) -> torch.Tensor:
    height, width = split.sizes[row]
    return torch.from_numpy(np.array(split.pixels[row][:height, :width])).permute(2, 0, 1)


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
    """The top-1 accuracy on the training images `rows` under the test transform."""
    model.eval()
    crops = torch.from_numpy(fixed_crops(task.train, rows.tolist(), task.transform)).permute(0, 3, 1, 2)
    logits = model(normalize(crops, task.transform.mean, task.transform.std, torch.float32))
    return float((logits.argmax(1) == torch.from_numpy(np.asarray(task.train.labels))[rows]).float().mean())


def greedy_soup(
    model: nn.Module, states: Sequence[dict[str, torch.Tensor]], task: Task, held_out: torch.Tensor
) -> nn.Module:
    """The best state, averaged with each of the others that does not lower the validation score (Wortsman et al., 2022)."""
    taken, best = list[dict[str, torch.Tensor]](), -1.0
    for state in states:
        model.load_state_dict(mean_state([*taken, state]))
        score = accuracy(model, task, held_out)
        if score >= best:
            taken, best = [*taken, state], score
    model.load_state_dict(mean_state(taken))
    return model


def mean_state(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
