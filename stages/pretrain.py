"""Train the source model of the embedded default: python -m stages.pretrain.

With `model.weights: synthetic` the network learns to tell other drawn things apart, and what it has learnt is transferred.
With any other weights there is nothing to train; only summary.json is written, which says so.
"""

from dataclasses import asdict

import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.dataset import TrainSplit, pack_canvas
from stages.shared.files import replacing, write_json
from stages.shared.model import build_model
from stages.shared.optimization import Optimization, param_groups
from stages.shared.params import load_params
from stages.shared.reproducibility import (
    Execution,
    choose_device,
    choose_precision,
    describe_machine,
    seed_everything,
)
from stages.shared.sampling import Augmentation, Sampling
from stages.shared.training import Epoch, fit
from stages.shared.transforms import Transform
from synthetic_images import SOURCE_CLASSES, draw_source
from synthetic_images.many import draw_many

LARGE_CROPS = Augmentation(crop_scale=(0.25, 1.0))  # a few epochs learn more from these than from the book's, from 0.08


def main() -> None:
    params = load_params()
    if params.model.weights != "synthetic":
        write_json(
            artifacts.PRETRAIN / "summary.json", {"trained": False, "reason": "model.weights names weights that exist"}
        )
        return
    device = choose_device(params.runtime.device)
    split = draw_split(params.pretrain.num_images, params.dataset.synthetic.side, params.seed)
    cut = params.preprocess
    transform = Transform(cut.resize, cut.crop, cut.mean, cut.std)
    settings = params.pretrain
    sampling = Sampling(torch.arange(len(split)), params.seed, settings.epochs, settings.batch_size, LARGE_CROPS)
    execution = Execution(device, choose_precision("auto", device), params.runtime.step)
    model, history = train_source_model(
        split, params.model.architecture, transform, sampling, params.pretrain.lr, execution
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
    drawn = draw_many(draw_source, [SOURCE_CLASSES[label] for label in labels], range(num_images), seed, side)
    images = list(tqdm(drawn, total=num_images, desc="drawing the source task", disable=None, leave=False))
    pixels, sizes = pack_canvas(images, side)
    return TrainSplit(pixels, sizes, labels)


def train_source_model(
    split: TrainSplit, architecture: str, transform: Transform, sampling: Sampling, lr: float, execution: Execution
) -> tuple[torch.nn.Module, list[Epoch]]:
    """A network trained from random weights; `lr` is the highest."""
    seed_everything(sampling.seed)
    model = build_model(architecture, len(SOURCE_CLASSES), transform.crop)
    optimization = Optimization(lr, momentum=0.9, weight_decay=0.0005, schedule="cosine", warmup=0.1, loss="mean")
    groups = param_groups(model, (), optimization)
    return model, fit(model, groups, split, transform, sampling, optimization, execution, name="pretrain")


if __name__ == "__main__":
    run(main)
