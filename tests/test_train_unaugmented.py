"""Without augmentation nothing is computed twice, and nothing comes out differently."""

import numpy as np
import pytest
import torch

from stages.shared.dataset import TrainSplit
from stages.shared.model import build_model, freeze_through, head_parameters, trainable_tail
from stages.shared.optimization import Optimization, param_groups
from stages.shared.reproducibility import Execution
from stages.shared.sampling import Augmentation, Sampling, plan_epoch
from stages.shared.training import fit
from stages.shared.transforms import Transform, resize_center_crop
from stages.train.unaugmented import cropped, without_augmentation

CROP, CPU = 64, torch.device("cpu")
TRANSFORM = Transform(72, CROP, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1", "shufflenet_v2_x0_5"]
OTHERS = ["convnext_tiny", "vit_b_32", "densenet121", "swin_t", "regnet_y_400mf", "alexnet", "vgg11", "mnasnet0_5"]


@pytest.fixture(scope="module")
def split() -> TrainSplit:
    """Ten noisy images of differing sizes on a canvas of 80 px."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 81, (10, 2)).astype(np.int32)
    pixels = np.zeros((10, 80, 80, 3), dtype=np.uint8)
    for canvas, (height, width) in zip(pixels, sizes, strict=True):
        canvas[:height, :width] = rng.integers(0, 256, (height, width, 3))
    return TrainSplit(pixels, sizes, np.arange(10, dtype=np.int64) % 2)


def frozen_model(architecture: str):
    torch.manual_seed(0)
    model = build_model(architecture, 2, CROP)
    head = head_parameters(architecture, CROP)
    freeze_through(model, "backbone", head)
    return model, head


def train(model, head, split, features, precision):
    optimization = Optimization(0.01, momentum=0.9, weight_decay=0.001)
    history = fit(
        model,
        param_groups(model, head, optimization),
        split,
        TRANSFORM,
        Sampling(torch.arange(len(split)), seed=3, epochs=3, batch_size=4, augmentation=None),
        optimization,
        Execution(CPU, precision),
        features=features,
    )
    return [epoch.train_loss for epoch in history]


@pytest.mark.parametrize("architecture", SMALL + [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS])
def test_a_head_trained_on_features_equals_one_trained_through_the_frozen_backbone(split, architecture):
    chosen = torch.tensor([0, 2, 3, 5, 6, 7, 9])
    slow, head = frozen_model(architecture)
    crops = cropped(split, chosen, TRANSFORM)
    expected = train(slow, head, crops, None, torch.float64)

    fast, head = frozen_model(architecture)
    tail, crops, features = without_augmentation(fast, head, split, chosen, TRANSFORM, 4, Execution(CPU, torch.float64))
    assert features is not None
    assert train(
        tail, [f"0.{name.partition('.')[2]}" for name in head], crops, features, torch.float64
    ) == pytest.approx(expected, rel=1e-12)
    for name, value in slow.state_dict().items():
        assert torch.allclose(fast.state_dict()[name], value, rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_features_are_those_of_the_test_crops_in_the_precision_of_training(split, precision):
    model, head = frozen_model("resnet18")
    tail, crops, features = without_augmentation(
        model, head, split, torch.arange(10), TRANSFORM, 4, Execution(CPU, precision)
    )
    losses = train(tail, ["0.weight", "0.bias"], crops, features, precision)
    slow, head = frozen_model("resnet18")
    assert losses == pytest.approx(
        train(slow, head, crops, None, precision), rel=1e-3 if precision == torch.bfloat16 else 1e-5
    )


def test_the_backbone_runs_once_for_each_image(split):
    model, head = frozen_model("resnet18")
    images = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: images.append(len(inputs[0])))
    tail, crops, features = without_augmentation(
        model, head, split, torch.arange(10), TRANSFORM, 4, Execution(CPU, torch.float32)
    )
    train(tail, ["0.weight", "0.bias"], crops, features, torch.float32)
    assert sum(images) == 10


def test_where_more_than_the_head_trains_there_are_no_features():
    model = build_model("resnet18", 2, CROP)
    head = head_parameters("resnet18", CROP)
    assert trainable_tail(model, head) is None
    freeze_through(model, "layer3", head)
    assert trainable_tail(model, head) is None
    freeze_through(model, "layer4", head)
    assert trainable_tail(model, head) is model.fc


def test_fixed_crops_are_the_test_transform_of_each_image_without_its_canvas(split):
    crops = cropped(split, torch.tensor([4, 1]), TRANSFORM)
    height, width = split.sizes[4]
    assert np.array_equal(crops.pixels[0], resize_center_crop(split.pixels[4, :height, :width], 72, CROP))
    assert crops.labels.tolist() == [0, 1]
    assert crops.sizes.tolist() == [[CROP, CROP]] * 2


def test_without_augmentation_the_order_stays_and_every_image_is_whole():
    sizes = torch.tensor([[30, 40], [50, 20], [64, 64]])
    plain, augmented = (plan_epoch(sizes, torch.arange(3), 1, 1, augment) for augment in (None, Augmentation()))
    assert torch.equal(plain.index, augmented.index)
    assert torch.equal(plain.boxes, torch.cat([torch.zeros(3, 2, dtype=torch.int64), sizes[plain.index]], 1))
    assert not plain.flips.any()
