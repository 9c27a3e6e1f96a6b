"""A step replayed from a CUDA graph trains as the step itself. On a CPU, with stand-ins for CUDA's graphs."""

import numpy as np
import pytest
import torch

from stages.shared import capture
from stages.shared.capture import captured
from stages.shared.inference import batches_on_device, batches_on_host
from stages.shared.optimization import Optimization, make_optimizer, param_groups
from stages.shared.sampling import Augmentation, Draws, batches, plan_epoch
from stages.shared.steps import Totals, training_step
from stages.shared.streaming import row_copier, stream_batches
from tests.fake_graphs import FakeGraphs
from tests.test_steps import draws_of, make_step

CPU = torch.device("cpu")
EVERYTHING = {
    "momentum": 0.9, "ema": 0.9, "schedule": "cosine", "loss": "mean", "label_smoothing": 0.1, "class_weights": (0.5, 1.5),
}  # fmt: skip


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> FakeGraphs:
    return FakeGraphs(monkeypatch)


@pytest.mark.parametrize(
    "how",
    [{}, {"momentum": 0.9}, {"optimizer": "adamw"}, {"optimizer": "adamw", "ema": 0.9}, EVERYTHING],
    ids=lambda how: " ".join(how) or "sgd",
)
def test_a_captured_step_trains_as_the_step_itself(images, graphs, how):
    """Warming up and capturing leave no trace in anything that a step changes, whatever the optimizer remembers."""
    plain, plain_state = make_step(images, **how)
    step, state = make_step(images, **how)
    replayed = captured(graphs.note(step), state, CPU)
    for batch in (draws_of(0, 1, 2, 3), draws_of(4, 5, 6, 7), draws_of(1, 6), draws_of(2, 3, 4, 5), draws_of(0, 7)):
        plain(batch)
        replayed(batch)
        assert all(torch.equal(a, b) for a, b in zip(plain_state, state, strict=True))


def test_the_order_of_calls_is_that_which_cuda_asks_for(images, graphs):
    step, state = make_step(images)
    captured(graphs.note(step), state, CPU)(draws_of(0, 1, 2, 3))
    warm_up = ["side waits for main", "enter side", *["step 4"] * 3, "leave side", "main waits for side"]
    assert graphs.calls == [*warm_up, "capture", "step 4", "replay"]


def test_warming_up_leaves_no_trace_of_the_stream_that_parameters_were_cloned_on(graphs):
    """Were a clone of a parameter part of autograd's graph, its AccumulateGrad node, which holds the default stream, would live on.

    Seen from within each step: the node that a new use of the weight gets is a new one.
    """
    model, totals, optimization = torch.nn.Linear(4, 2), Totals(CPU), Optimization(0.1)
    optimizer = make_optimizer(param_groups(model, (), optimization), optimization, CPU)
    features, labels, seen = torch.randn(8, 4), torch.arange(8) % 2, []
    inner = training_step(
        model, optimizer, lambda draws: features[draws.index], labels, totals, optimization, 4, autocast=False
    )

    def step(draws: Draws) -> None:
        node = model.weight.view_as(model.weight).grad_fn.next_functions[0][0]
        seen.append("met" in node.metadata)
        node.metadata["met"] = True
        del node
        inner(draws)

    captured(step, [*model.parameters(), *totals.tensors()], CPU)(draws_of(0, 1, 2, 3))
    assert seen == [False] * 4


def test_a_size_is_captured_at_first_sight_only_if_it_is_the_first(images, graphs, monkeypatch):
    monkeypatch.setattr(capture, "OFTEN", 3)
    step, state = make_step(images)
    otherwise = []
    replayed = captured(graphs.note(step), state, CPU, otherwise=lambda draws: otherwise.append(len(draws.index)))
    replayed(draws_of(0, 1, 2, 3))
    for seen in (1, 2):
        replayed(draws_of(4, 5))
        assert (graphs.captured, otherwise) == (1, [2] * seen)
    replayed(draws_of(4, 5))
    replayed(draws_of(6, 7))
    assert (graphs.captured, otherwise) == (2, [2, 2])
    assert graphs.calls[-2:] == ["replay", "replay"]


def test_of_several_devices_only_the_size_that_all_share_is_captured(images, graphs, monkeypatch):
    monkeypatch.setattr(capture, "OFTEN", 1)
    monkeypatch.setattr(capture, "rank_and_world_size", lambda: (0, 2))
    step, state = make_step(images)
    replayed = captured(graphs.note(step), state, CPU)
    for batch in (draws_of(0, 1, 2, 3), draws_of(4, 5), draws_of(6, 7, 0, 1), draws_of(4, 5)):
        replayed(batch)
    assert graphs.captured == 1


def test_a_step_that_cannot_be_captured_names_the_cause(graphs):
    def step(draws: Draws) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(ValueError, match=r"capturing .* failed: operation not permitted when stream is capturing\. If"):
        captured(step, (), CPU)(draws_of(0))


def test_memory_that_ends_while_capturing_is_not_taken_for_something_else(graphs):
    def step(draws: Draws) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        captured(step, (), CPU)(draws_of(0))


def test_capturing_lets_cudnn_choose_and_then_leaves_the_setting_alone(graphs):
    seen = []
    captured(lambda draws: seen.append(torch.backends.cudnn.benchmark), (), CPU)(draws_of(0, 1))
    assert seen == [True] * 4  # three to warm up, one captured
    assert torch.backends.cudnn.benchmark is False


def test_mixed_draws_are_replayed_whole(graphs):
    """A graph reads every tensor of the draws that it was captured with, those of mixing and colour too."""
    sizes = torch.full((8, 2), 20)
    plan = plan_epoch(sizes, torch.arange(8), 0, 1, Augmentation(mixup=0.2, color=0.3))
    seen: list[list[torch.Tensor]] = []
    replayed = captured(graphs.note(lambda draws: seen.append([part.clone() for part in draws.tensors()])), (), CPU)
    for batch in batches(plan, 4):
        replayed(batch)
        assert all(torch.equal(a, b) for a, b in zip(seen[-1], batch.tensors(), strict=True))
    assert len(seen[-1]) == 8


def test_a_streamed_batch_is_copied_while_the_step_before_computes(graphs):
    """The copy from the host runs on a stream of its own, and waits neither for the step nor for the batch before."""
    host = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
    fetch, block = stream_batches(host, 3, CPU)
    for batch in (draws_of(5, 0, 2), draws_of(1, 4), draws_of(3, 3, 0)):
        graphs.calls.clear()
        fetch(batch.index)
        assert np.array_equal(block[: len(batch.index)], host[batch.index])
        copy = ["host waits", "enter side", "side waits", "record on side", "leave side"]
        assert graphs.calls == [*copy, "main waits", "record on main"]


@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_however_many_threads_copy_every_row_arrives_in_its_place(monkeypatch, num_threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    host, index = np.random.default_rng(0).integers(0, 256, (9, 5, 5, 3), np.uint8), np.array([8, 0, 3, 3, 7])
    buffer = np.full((7, 5, 5, 3), 255, np.uint8)
    row_copier(host)(index, buffer)
    assert np.array_equal(buffer[:5], host[index])
    assert (buffer[5:] == 255).all()


def test_the_fast_evaluations_batches_are_the_same_on_the_device_and_on_the_host(graphs):
    pixels = np.arange(11 * 2 * 2 * 3, dtype=np.uint8).reshape(11, 2, 2, 3)
    streamed, copied = (
        [batch[:size].clone() for batch, size in share(pixels, 4, CPU)]
        for share in (batches_on_device, batches_on_host)
    )
    assert [len(batch) for batch in streamed] == [4, 4, 3]
    assert torch.equal(torch.cat(streamed), torch.cat(copied))
    assert torch.equal(torch.cat(copied), torch.from_numpy(pixels))
