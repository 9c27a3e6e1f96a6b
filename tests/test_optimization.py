"""How weights are updated: the rates, the optimizer's state from its first step on, and the running average."""

import math

import pytest
import torch
from torch import nn

from stages.shared.model import build_model, freeze_through, head_parameters, layers_of
from stages.shared.optimization import (
    AverageWeights,
    Optimization,
    follow_schedule,
    lr_factor,
    make_optimizer,
    param_groups,
    state_tensors,
)

CPU = torch.device("cpu")


def trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[torch.Tensor]:
    """The parameters after three steps on losses of their own."""
    for step in range(3):
        optimizer.zero_grad()
        model(torch.full((2, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("how", "plain"),
    [
        ({}, lambda p: torch.optim.SGD(p, 0.01, weight_decay=0.1)),
        ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1)),
        ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
    ],
    ids=["sgd", "momentum", "adamw"],
)
def test_an_optimizer_whose_state_is_made_up_front_takes_torchs_own_steps(how, plain):
    optimization = Optimization(0.01, weight_decay=0.1, **how)
    model, other = linear(), linear()
    optimizer = make_optimizer(param_groups(model, (), optimization), optimization, CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all((tensor == 0).all() for tensor in state_tensors(optimizer))
    before = len(state_tensors(optimizer))
    for a, b in zip(trained(optimizer, model), trained(plain(other.parameters()), other), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert (
        len(state_tensors(optimizer))
        == before
        == {"sgd": 2 if "momentum" in how else 0, "adamw": 6}[how.get("optimizer", "sgd")]
    )


def test_an_unknown_optimizer_is_named():
    optimization = Optimization(0.1, optimizer="lion")
    with pytest.raises(ValueError, match="optimizer is 'lion'; allowed are sgd and adamw"):
        make_optimizer(param_groups(linear(), (), optimization), optimization, CPU)


def test_a_cosine_rises_linearly_and_falls_to_nothing():
    optimization = Optimization(1.0, schedule="cosine", warmup=0.2)
    assert lr_factor(optimization, 0.0) == pytest.approx(0.005)
    assert lr_factor(optimization, 0.1) == pytest.approx(0.505)
    assert lr_factor(optimization, 0.2) == 1
    assert lr_factor(optimization, 0.6) == pytest.approx(0.5)
    assert lr_factor(optimization, 1 - 1e-9) == pytest.approx(0, abs=1e-9)


def test_a_constant_rate_is_reached_after_its_warm_up():
    optimization = Optimization(1.0, warmup=0.5)
    assert [round(lr_factor(optimization, progress), 3) for progress in (0, 0.25, 0.4999, 0.5, 0.9)] == [
        0.002, 0.502, 1.0, 1.0, 1.0,
    ]  # fmt: skip


def test_every_group_follows_the_schedule_from_its_own_rate():
    optimization = Optimization(0.1, head_lr_multiplier=10, schedule="cosine")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = make_optimizer(param_groups(model, ("1.weight", "1.bias"), optimization), optimization, CPU)
    follow_schedule(optimizer, optimization, 0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.05, 0.5])
    follow_schedule(optimizer, optimization, 0.0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2", "vit_b_32", "convnext_tiny", "densenet121"])
def test_layers_are_every_parameter_once_from_the_input_to_the_head(architecture):
    with torch.device("meta"):
        model = build_model.__globals__["_construct"](architecture, 2, 64)
    layers = layers_of(model)
    names = [name for layer in layers for name in layer]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert set(head_parameters(architecture, 64)) <= set(layers[-1])
    assert len(layers) >= 7
    blocks = {"resnet18": "layer1.0.conv1.weight", "mobilenet_v2": "features.1.conv.0.0.weight"}
    if architecture in blocks:
        assert next(i for i, layer in enumerate(layers) if blocks[architecture] in layer) == 1


def test_rates_decay_layer_by_layer_towards_the_input():
    model = build_model("resnet18", 2, 64)
    head = head_parameters("resnet18", 64)
    groups = param_groups(model, head, Optimization(1.0, head_lr_multiplier=3, layer_decay=0.5))
    rates = [group["lr"] for group in groups]
    assert rates == [*(0.5 ** (9 - i) for i in range(9)), 3.0]  # the stem, eight blocks, the head
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    freeze_through(model, "layer3", head)
    assert [group["lr"] for group in param_groups(model, head, Optimization(1.0, layer_decay=0.5))] == [0.25, 0.5, 1.0]


def test_the_running_average_is_that_of_the_formula_and_ends_in_the_model():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = AverageWeights(model, 0.5)
    with torch.no_grad():
        expected = start = 2.0
        model[0].weight.fill_(start)
        average = AverageWeights(model, 0.5)
        for step, value in enumerate([3.0, 5.0, 1.0, 7.0]):
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(value)
            model[1].num_batches_tracked += 1
            average.update()
            keep = min(0.5, (1 + step) / (10 + step))
            expected = keep * expected + (1 - keep) * value
        average.put_into_model()
    assert model[0].weight.item() == pytest.approx(expected)
    assert math.isfinite(float(model[1].running_mean))
    assert int(model[1].num_batches_tracked) == 4
