"""A training step: the same on one device's own gradients or on flat ones, and on any number of threads."""

import numpy as np
import pytest
import torch
from torch import nn

from stages.shared import steps
from stages.shared.image_source import crop_on_all_threads
from stages.shared.optimization import AverageWeights, Optimization, make_optimizer, param_groups, state_tensors
from stages.shared.sampling import Draws, plan_epoch
from stages.shared.steps import FlatGradients, OwnGradients, Totals, training_step
from stages.shared.transforms import choose_taps, gather_taps, num_taps, rescale, rescaling
from tests.exact_crops import crop_each

CPU = torch.device("cpu")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def draws_of(*index: int) -> Draws:
    return Draws(
        torch.tensor(index), torch.zeros(len(index), 4, dtype=torch.int64), torch.zeros(len(index), dtype=torch.bool)
    )


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def make_step(images: torch.Tensor, **changed):
    """A step over eight images of two classes, and every tensor that it changes."""
    optimization = Optimization(0.01, **changed)
    model, labels, totals = make_model(), torch.arange(8) % 2, Totals(CPU)
    optimizer = make_optimizer(param_groups(model, (), optimization), optimization, CPU)
    average = AverageWeights(model, optimization.ema)
    if optimization.ema:
        optimizer.register_step_post_hook(lambda *_: average.update())
    step = training_step(
        model, optimizer, lambda draws: images[draws.index], labels, totals, optimization, 4, autocast=False
    )
    remembered = [*state_tensors(optimizer), *average.tensors()]
    return step, [*model.parameters(), *model.buffers(), *remembered, *totals.tensors()]


def test_flat_gradients_and_own_gradients_train_alike(images, monkeypatch):
    own, own_state = make_step(images)
    monkeypatch.setattr(steps, "rank_and_world_size", lambda: (0, 2))
    flat, flat_state = make_step(images)
    for batch in (draws_of(0, 1, 2, 3), draws_of(4, 5, 6, 7), draws_of(1, 6)):
        own(batch)
        flat(batch)
    assert all(torch.equal(a, b) for a, b in zip(own_state, flat_state, strict=True))


def test_flat_gradients_are_one_buffer_laid_out_as_the_weights():
    parameters = list(make_model().parameters())
    gradients = FlatGradients(parameters)
    assert len(gradients.buffer) == sum(parameter.numel() for parameter in parameters)
    for parameter in parameters:
        assert parameter.grad.stride() == parameter.stride()
        parameter.grad += 1
    assert (gradients.buffer == 1).all()
    gradients.clear()
    assert all((parameter.grad == 0).all() for parameter in parameters)


def test_own_gradients_leave_nothing_of_the_step_before(images):
    model = make_model()
    gradients = OwnGradients(list(model.parameters()))
    model(images).sum().backward()
    gradients.clear()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("num_threads", [1, 3])
def test_crops_do_not_depend_on_the_number_of_threads(num_threads, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    draws = plan_epoch(torch.full((5, 2), 40), torch.arange(5), 0, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    assert torch.equal(
        crop_on_all_threads(pixels, 24)(draws),
        crop_each(torch.from_numpy(pixels), draws.index, draws.boxes, draws.flips, 24),
    )


@pytest.mark.parametrize("side", [20, 60])
def test_the_way_on_cuda_compiles_whole_and_cuts_the_same_crops(side):
    """As image_source compiles it, but for the compiler's last stage, which needs a GPU; 3 and 5 images, one tail."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, side, side, 3), dtype=np.uint8))
    taps, scale_and_shift = num_taps(side, 24), rescaling((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), CPU)

    def choose(boxes, flips):
        return choose_taps(boxes, flips, 24, taps)

    def gather(source, index, *chosen):
        return rescale(gather_taps(source, index, *chosen).permute(0, 3, 1, 2), *scale_and_shift, torch.float32)

    choose, gather = (torch.compile(function, backend="aot_eager", fullgraph=True) for function in (choose, gather))
    for num in (5, 3):
        draws = plan_epoch(torch.full((8, 2), side), torch.arange(num), 0, 1)
        cut = gather(pixels, draws.index, *choose(draws.boxes, draws.flips))
        exact = rescale(crop_each(pixels, draws.index, draws.boxes, draws.flips, 24), *scale_and_shift, torch.float32)
        assert cut.is_contiguous(memory_format=torch.channels_last)
        assert (cut - exact).abs().mean() < 0.05 / 255 / 0.2  # a twentieth of a grey level, before the division by std
