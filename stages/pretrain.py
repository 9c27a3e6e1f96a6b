"""Train the source model of the embedded default: python -m stages.pretrain.

With `model.weights: synthetic` the network learns to tell other drawn things apart, and what it has learnt is transferred.
With any other weights there is nothing to train; only summary.json is written, which says so.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.dataset import TrainSplit, pack_canvas
from stages.shared.files import replacing, write_json
from stages.shared.model import build_model, param_groups
from stages.shared.params import load_params
from stages.shared.reproducibility import choose_device, choose_precision, describe_machine, seed_everything
from stages.shared.training import Epoch, fit
from synthetic_images import SOURCE_CLASSES, draw_source

MOMENTUM = 0.9
WEIGHT_DECAY = 0.0005  # of the mean loss
WARM_UP = 0.1  # of all steps


def main() -> None:
    params = load_params()
    if params.model.weights != "synthetic":
        write_json(
            artifacts.PRETRAIN / "summary.json", {"trained": False, "reason": "model.weights names weights that exist"}
        )
        return
    device = choose_device(params.runtime.device)
    split = draw_split(params.pretrain.num_images, params.dataset.synthetic.side, params.seed)
    model, history = train_source_model(
        split,
        architecture=params.model.architecture,
        crop=params.preprocess.crop,
        mean=params.preprocess.mean,
        std=params.preprocess.std,
        lr=params.pretrain.lr,
        batch_size=params.pretrain.batch_size,
        epochs=params.pretrain.epochs,
        seed=params.seed,
        device=device,
        precision=choose_precision("auto", device),
        execution=params.runtime.step,
    )
    with replacing(artifacts.PRETRAIN / "weights.safetensors") as part:
        part.write_bytes(save({name: value.cpu().contiguous() for name, value in model.state_dict().items()}))
    write_json(
        artifacts.PRETRAIN / "summary.json",
        {
            "trained": True,
            "class_names": SOURCE_CLASSES,
            "num_images": len(split),
            **asdict(history[-1]),
            **describe_machine(device),
        },
    )


def draw_split(num_images: int, side: int, seed: int) -> TrainSplit:
    """The source task: `num_images` drawn images, the classes in turn."""
    labels = np.arange(num_images, dtype=np.int64) % len(SOURCE_CLASSES)
    bar = tqdm(enumerate(labels), total=num_images, desc="drawing the source task", disable=None, leave=False)
    images = [draw_source(SOURCE_CLASSES[label], index, seed, side) for index, label in bar]
    pixels, sizes = pack_canvas(images, side)
    return TrainSplit(pixels, sizes, labels)


def train_source_model(
    split: TrainSplit,
    *,
    architecture: str,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    lr: float,
    batch_size: int,
    epochs: int,
    seed: int,
    device: torch.device,
    precision: torch.dtype,
    execution: str,
) -> tuple[torch.nn.Module, list[Epoch]]:
    """SGD with momentum on the mean loss, warmed up linearly and annealed along a cosine; `lr` is its peak."""
    seed_everything(seed)
    model = build_model(architecture, len(SOURCE_CLASSES), crop)
    history = fit(
        model,
        # The loop sums losses: the mean's lr and weight decay, for a batch of this size.
        param_groups(model, (), lr / batch_size, 1.0),
        split,
        torch.arange(len(split)),
        crop=crop,
        mean=mean,
        std=std,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY * batch_size,
        device=device,
        precision=precision,
        execution=execution,
        lr_scale=warm_up_then_cosine,
        name="pretrain",
    )
    return model, history


def warm_up_then_cosine(progress: float) -> float:
    """The lr's factor at `progress` in [0, 1) of the training."""
    if progress < WARM_UP:
        return (progress + 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


if __name__ == "__main__":
    run(main)
