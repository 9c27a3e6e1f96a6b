"""Heads are found in any torchvision classifier; source weights fit or the key is named."""

import pytest
import torch
import torchvision

from stages.shared.model import build_model, freeze_through, head_parameters, load_source, train_mode
from stages.shared.optimization import Optimization, param_groups
from stages.shared.params import ARCHITECTURES

SMALL = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1", "shufflenet_v2_x0_5"]
OTHERS = [
    "resnet50",
    "convnext_tiny",
    "vit_b_16",
    "densenet121",
    "swin_t",
    "regnet_y_400mf",
    "alexnet",
    "vgg11",
    "mnasnet0_5",
]


def source_state(architecture: str, num_classes: int, crop: int = 64) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return build_model(architecture, num_classes, crop).state_dict()


def test_params_know_torchvisions_architectures():
    installed = set(torchvision.models.list_models(module=torchvision.models))
    assert set(ARCHITECTURES) == installed - {"googlenet", "inception_v3"}


@pytest.mark.parametrize("architecture", SMALL + [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS])
def test_head_is_found_and_replaced(architecture):
    source = source_state(architecture, 7)
    model = build_model(architecture, 3, 64)
    head = head_parameters(architecture, 64)
    load_source(model, architecture, 64, source, {})
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    for name, value in model.state_dict().items():
        assert name in head or torch.equal(value, source[name])
    assert any(value.shape[0] == 3 for name, value in model.state_dict().items() if name in head)


def test_head_rows_start_from_the_source_models_classes():
    source = source_state("resnet18", 7)
    model = build_model("resnet18", 2, 64)
    load_source(model, "resnet18", 64, source, {0: 4})
    assert torch.equal(model.fc.weight[0], source["fc.weight"][4])
    assert torch.equal(model.fc.bias[0], source["fc.bias"][4])
    assert not torch.equal(model.fc.weight[1], source["fc.weight"][4])
    with pytest.raises(ValueError, match=r"source class 7.*only 7 classes"):
        load_source(model, "resnet18", 64, source, {0: 7})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer1.0.conv1.weight"), "missing layer1.0.conv1.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda state: state.update({"bn1.weight": torch.zeros(3)}), r"bn1.weight has shape \(3,\), expected \(64,\)"),
        (lambda state: state["bn1.bias"].fill_(float("nan")), "bn1.bias has values that are not finite"),
    ],
)
def test_source_weights_that_do_not_fit_are_refused_by_key(change, message):
    source = source_state("resnet18", 10)
    change(source)
    with pytest.raises(ValueError, match=message):
        load_source(build_model("resnet18", 2, 64), "resnet18", 64, source, {})


@pytest.mark.slow
def test_a_vision_transformer_takes_weights_of_another_image_size():
    source = source_state("vit_b_16", 10, crop=64)
    model = build_model("vit_b_16", 2, 96)
    load_source(model, "vit_b_16", 96, source, {})
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 2)


def test_images_too_small_for_the_architecture_are_refused():
    with pytest.raises(ValueError, match=r"alexnet cannot take images of 32 x 32 px; change preprocess.crop"):
        build_model("alexnet", 2, 32)


def test_freezing_keeps_everything_up_to_the_named_module():
    model = build_model("resnet18", 2, 64)
    head = head_parameters("resnet18", 64)
    freeze_through(model, "layer2", head)
    trainable = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"layer3", "layer4", "fc"}
    train_mode(model)
    assert not model.bn1.training
    assert not model.layer2[1].bn2.training
    assert model.layer3[0].bn1.training


def test_freezing_the_backbone_leaves_the_head():
    model = build_model("squeezenet1_1", 2, 64)
    head = head_parameters("squeezenet1_1", 64)
    freeze_through(model, "backbone", head)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(head)


@pytest.mark.parametrize("last", ["layer9", "fc", "conv"])
def test_freezing_names_what_is_allowed(last):
    with pytest.raises(ValueError, match=f"'{last}'.*none, backbone, or one of conv1, bn1, layer1"):
        freeze_through(build_model("resnet18", 2, 64), last, head_parameters("resnet18", 64))


def test_the_head_learns_at_its_own_rate():
    model = build_model("resnet18", 2, 64)
    backbone, head = param_groups(model, head_parameters("resnet18", 64), Optimization(0.1, head_lr_multiplier=10))
    assert (backbone["lr"], head["lr"]) == (0.1, 1.0)
    assert [tuple(parameter.shape) for parameter in head["params"]] == [(2, 512), (2,)]
    assert len(backbone["params"]) + len(head["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("fraction", "first_trained"), [(0.4, "layer2.1.conv1.weight"), (0.01, "conv1.weight"), (0.99, "fc.weight")]
)
def test_a_fraction_freezes_so_many_layers_from_the_input_on(fraction, first_trained):
    """A ResNet-18 has nine below its head: the stem and eight blocks."""
    model = build_model("resnet18", 2, 64)
    freeze_through(model, fraction, head_parameters("resnet18", 64))
    assert next(name for name, parameter in model.named_parameters() if parameter.requires_grad) == first_trained
