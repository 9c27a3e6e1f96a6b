"""Mixing, colours and the losses that go with them are torchvision's and torch's own, drawn up front from the seed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF

from stages.shared.image_source import image_source
from stages.shared.optimization import Optimization
from stages.shared.sampling import Augmentation, Draws, dropout_seed, epoch_seed, plan_epoch
from stages.shared.steps import make_loss
from stages.shared.transforms import Transform, jitter_colors, normalize, rescaling
from tests.exact_crops import crop_each

CPU = torch.device("cpu")
TRANSFORM = Transform(27, 24, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZES, CHOSEN = torch.full((50, 2), 40), torch.arange(50)


def test_ingredients_leave_the_crops_of_the_plain_plan_alone():
    plain, rich = (plan_epoch(SIZES, CHOSEN, 3, 1, how) for how in (Augmentation(), Augmentation(color=0.4, mixup=0.2)))
    assert all(torch.equal(getattr(plain, part), getattr(rich, part)) for part in ("index", "boxes", "flips"))
    assert len(plain.tensors()) == 3
    again = plan_epoch(SIZES, CHOSEN, 3, 1, Augmentation(color=0.4, mixup=0.2))
    assert all(torch.equal(a, b) for a, b in zip(rich.tensors(), again.tensors(), strict=True))


def test_an_image_is_mixed_with_another_as_that_is_cut_in_this_epoch_and_keeps_the_larger_share():
    plan = plan_epoch(SIZES, CHOSEN, 0, 1, Augmentation(mixup=0.4))
    place = {int(row): i for i, row in enumerate(plan.index)}
    others = [place[int(row)] for row in plan.other_index]
    assert sorted(others) == list(range(50))
    assert torch.equal(plan.other_boxes, plan.boxes[others])
    assert torch.equal(plan.other_flips, plan.flips[others])
    assert 0.5 <= plan.share.min() < 0.7 < 0.95 < plan.share.max() <= 1


def test_colours_are_multiplied_by_factors_around_one():
    colors = plan_epoch(SIZES, CHOSEN, 0, 1, Augmentation(color=0.3)).colors
    assert colors.shape == (50, 3)
    assert 0.7 <= colors.min() < 0.75 < 1.25 < colors.max() <= 1.3


@pytest.mark.parametrize(
    "factors", [(0.6, 1.0, 1.0), (1.3, 1.0, 1.0), (1.0, 0.5, 1.0), (1.0, 1.0, 1.4), (1.2, 0.7, 1.3)]
)
def test_jitter_is_torchvisions_on_each_channel(factors):
    pixels = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    expected = TF.adjust_brightness(pixels, factors[0])
    expected = TF.adjust_contrast(expected, factors[1])
    expected = TF.adjust_saturation(expected, factors[2])
    scale, shift = rescaling(TRANSFORM.mean, TRANSFORM.std, CPU)
    images = normalize(255 * pixels, TRANSFORM.mean, TRANSFORM.std, torch.float32)
    jittered = jitter_colors(images, torch.tensor([factors] * 2), scale, shift)
    assert torch.allclose((jittered - shift) / (255 * scale), expected, atol=2e-5)


def test_mixed_images_are_sums_of_two_crops():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 40, 3), dtype=np.uint8)
    draws = plan_epoch(SIZES, CHOSEN, 0, 1, Augmentation(mixup=0.4)).each(lambda part: part[:6])
    _, cut = image_source(pixels, TRANSFORM, 12, torch.float32, CPU)

    def exact(index: torch.Tensor, boxes: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
        crops = crop_each(torch.from_numpy(pixels), index, boxes, flips, 24)
        return normalize(crops, TRANSFORM.mean, TRANSFORM.std, torch.float32)

    share = draws.share[:, None, None, None]
    own, other = (
        exact(draws.index, draws.boxes, draws.flips),
        exact(draws.other_index, draws.other_boxes, draws.other_flips),
    )
    mixed = cut(draws)
    assert torch.allclose(mixed, share * own + (1 - share) * other, atol=1e-5)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def draws_of(*index: int, **more: torch.Tensor) -> Draws:
    nothing = torch.zeros(len(index), 4, dtype=torch.int64)
    return Draws(torch.tensor(index), nothing, torch.zeros(len(index), dtype=torch.bool), **more)


def test_the_loss_of_a_mixture_is_that_of_its_mixed_labels():
    """Soft targets, as the paper has it (Zhang et al., 2018), smoothed alike."""
    logits, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    share, others = torch.tensor([0.9, 0.6, 0.5]), torch.tensor([3, 0, 1])
    nothing = {"other_boxes": torch.zeros(3, 4), "other_flips": torch.zeros(3, dtype=torch.bool)}
    draws = draws_of(0, 1, 2, share=share, other_index=others, **nothing)
    loss = make_loss(labels, Optimization(0.1, label_smoothing=0.1), torch.float32)(logits, draws)
    one_hot = F.one_hot(labels, 4).float()
    soft = share[:, None] * one_hot[:3] + (1 - share[:, None]) * one_hot[others]
    assert loss == pytest.approx(float(F.cross_entropy(logits, 0.9 * soft + 0.1 / 4, reduction="sum")), rel=1e-6)


def test_class_weights_weigh_each_image_by_its_class():
    logits, labels = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1])
    loss = make_loss(labels, Optimization(0.1, class_weights=(0.5, 3.0)), torch.float32)(logits[:3], draws_of(0, 1, 3))
    each = F.cross_entropy(logits[:3], labels[[0, 1, 3]], reduction="none")
    assert float(loss) == pytest.approx(float(0.5 * each[0] + 0.5 * each[1] + 3 * each[2]), rel=1e-6)


def test_no_two_devices_or_epochs_share_what_dropout_draws_nor_does_the_sampling_plan():
    seeds = {dropout_seed(seed, epoch, rank) for seed in range(3) for epoch in range(1, 9) for rank in range(4)}
    assert len(seeds) == 3 * 8 * 4
    assert not seeds & {epoch_seed(seed, epoch) for seed in range(3) for epoch in range(12)}
