"""Captured steps against eager ones: the same losses and weights after ten steps, full batches and tails."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.acceptance.claims import Claim, at_most
from benchmarks.acceptance.setup import Setup
from benchmarks.ours import fit_recipe
from benchmarks.workload import QUICK, Size, chosen_images, make_model, make_workload
from stages.shared.dataset import TrainSplit

EPOCHS, FULL_BATCHES = 2, 4  # and a tail in each epoch
LIMITS = {
    torch.float64: 1e-9,
    torch.float32: 2e-2,
    torch.bfloat16: 2e-2,
}  # cuDNN's choice of algorithm rounds otherwise


def claims(setup: Setup) -> Iterator[Claim]:
    """On a CPU, which captures nothing, eager steps are run twice: the comparison is the same."""
    small = replace(QUICK, num_resident=16, num_drawn=16)
    size = small if setup.small else replace(small, side=96, resize=72, crop=64, batch_size=32)
    execution = "graph" if setup.device == "cuda" else "eager"
    with tempfile.TemporaryDirectory() as folder:
        split = make_workload(size, Path(folder)).train
        for precision in (torch.float64, setup.precision):
            expected, found = (train(split, size, setup, how, precision) for how in ("eager", execution))
            what = f"ten {execution} steps against ten eager ones, {str(precision).removeprefix('torch.')}"
            for name, value in differences(found, expected).items():
                yield at_most(f"{what}: {name}", value, LIMITS[precision])


Trained = tuple[list[float], dict[str, torch.Tensor]]  # each epoch's loss, the final state


def train(split: TrainSplit, size: Size, setup: Setup, execution: str, precision: torch.dtype) -> Trained:
    model = make_model(size.crop)
    images = FULL_BATCHES * size.batch_size + size.batch_size // 2
    history = fit_recipe(
        model, split, chosen_images(images, len(split)), crop=size.crop, epochs=EPOCHS, batch_size=size.batch_size,
        device=setup.torch_device, step=execution, precision=precision,
    )  # fmt: skip
    state = {name: value.cpu().double() for name, value in model.state_dict().items()}
    return [epoch.train_loss for epoch in history], state


def differences(found: Trained, expected: Trained) -> dict[str, float]:
    """The largest relative difference of an epoch's loss, and of a tensor's values relative to its largest."""
    losses = max(abs(a - b) / abs(b) for a, b in zip(found[0], expected[0], strict=True))
    weights = max(
        float((found[1][name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for name, value in expected[1].items()
    )
    return {"losses": losses, "weights and buffers": weights}
