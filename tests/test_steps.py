"""A training step: the same on one device's own gradients or on flat ones, on any number of threads, and replayed from a graph."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from stages.shared import steps
from stages.shared import steps as shared_steps
from stages.shared.image_source import crop_on_all_threads
from stages.shared.sampling import Draws, plan_epoch
from stages.shared.steps import FlatGradients, OwnGradients, Totals, captured, training_step
from stages.shared.transforms import choose_taps, crop_each, gather_taps, num_taps, rescale, rescaling

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


def make_step(images: torch.Tensor, momentum: float = 0.0):
    model, labels, totals = make_model(), torch.arange(8) % 2, Totals(CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.01), momentum=momentum, fused=True)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    step = training_step(model, optimizer, lambda draws: images[draws.index], labels, totals, autocast=False)
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
    return step, [*model.parameters(), *model.buffers(), *buffers, totals.sums, totals.step, totals.first_bad]


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
    assert torch.equal(crop_on_all_threads(pixels, 24)(draws), crop_each(torch.from_numpy(pixels), *draws, 24))


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
        exact = rescale(crop_each(pixels, *draws, 24), *scale_and_shift, torch.float32)
        assert cut.is_contiguous(memory_format=torch.channels_last)
        assert (cut - exact).abs().mean() < 0.05 / 255 / 0.2  # a twentieth of a grey level, before the division by std


class FakeGraphs:
    """Stands in for CUDA's graphs: what runs while one is captured runs again, on the CPU, when it is replayed."""

    def __init__(self):
        self.captured, self.recording = 0, None

    def make(self):
        ran = []
        return SimpleNamespace(ran=ran, replay=lambda: [step(draws) for step, draws in ran])

    @contextmanager
    def capture(self, graph, pool, capture_error_mode):
        self.captured += 1
        self.recording = graph.ran
        yield
        self.recording = None

    def note(self, step):
        """`step`, noted when it runs in a capture."""

        def noted(draws: Draws) -> None:
            if self.recording is not None:
                self.recording.append((step, draws))
            step(draws)

        return noted


@pytest.fixture
def graphs(monkeypatch) -> FakeGraphs:
    fake = FakeGraphs()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "CUDAGraph": fake.make, "graph": fake.capture, "graph_pool_handle": lambda: None,
        "Stream": lambda device: stream, "current_stream": lambda device: stream, "stream": lambda stream: nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return fake


def test_a_captured_step_trains_as_the_step_itself_and_each_size_is_captured_once(images, graphs):
    plain, plain_state = make_step(images, momentum=0.9)
    step, state = make_step(images, momentum=0.9)
    replayed = captured(graphs.note(step), state, CPU)
    for batch in (draws_of(0, 1, 2, 3), draws_of(4, 5, 6, 7), draws_of(1, 6), draws_of(2, 3, 4, 5), draws_of(0, 7)):
        plain(batch)
        replayed(batch)
        assert all(torch.equal(a, b) for a, b in zip(plain_state, state, strict=True))
    assert graphs.captured == 2


def test_of_several_devices_only_the_size_that_all_share_is_captured(images, graphs, monkeypatch):
    monkeypatch.setattr(shared_steps, "rank_and_world_size", lambda: (0, 2))
    plain, plain_state = make_step(images)
    step, state = make_step(images)
    replayed = captured(graphs.note(step), state, CPU)
    for batch in (draws_of(0, 1, 2, 3), draws_of(4, 5), draws_of(6, 7, 0, 1), draws_of(2)):
        plain(batch)
        replayed(batch)
        assert all(torch.equal(a, b) for a, b in zip(plain_state, state, strict=True))
    assert graphs.captured == 1


def test_a_step_that_cannot_be_captured_says_what_to_set(graphs):
    def step(draws: Draws) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(ValueError, match=r"set runtime.step to eager \(operation not permitted"):
        captured(step, (), CPU)(draws_of(0))


def test_capturing_lets_cudnn_choose_and_then_leaves_the_setting_alone(images, graphs):
    seen = []
    replayed = captured(lambda draws: seen.append(torch.backends.cudnn.benchmark), (), CPU)
    replayed(draws_of(0, 1))
    assert seen == [True] * 4  # three to warm up, one captured
    assert torch.backends.cudnn.benchmark is False
