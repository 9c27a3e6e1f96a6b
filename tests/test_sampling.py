"""The sampling plan: torchvision's distribution, the seed's alone, whole over any number of devices."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T

from stages.shared import sampling
from stages.shared.sampling import choose_fraction, plan_epoch
from stages.shared.transforms import draw_crops

NUM_DRAWS = 8_000


def kolmogorov_smirnov(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest distance between two samples' distribution functions."""
    points = torch.cat([a, b]).unique()
    return float(
        max(abs((a <= p).double().mean() - (b <= p).double().mean()) for p in points[:: max(1, len(points) // 200)])
    )


@pytest.mark.parametrize(("height", "width"), [(224, 224), (512, 340), (90, 512)])
def test_crops_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    transform, image = T.RandomResizedCrop(224), torch.empty(3, height, width, device="meta")
    theirs = torch.tensor([list(transform.make_params([image]).values()) for _ in range(NUM_DRAWS)])
    ours, flips = draw_crops(torch.tensor([[height, width]]).expand(NUM_DRAWS, 2), torch.Generator().manual_seed(1))

    limit = 1.95 * np.sqrt(2 / NUM_DRAWS)  # two samples of one distribution are closer than this in 99.9 % of cases
    for column in range(4):
        assert kolmogorov_smirnov(ours[:, column], theirs[:, column]) < limit
    assert abs(flips.double().mean() - 0.5) < 0.02


def test_crops_stay_inside_the_image():
    sizes = torch.randint(1, 600, (5000, 2), generator=torch.Generator().manual_seed(0))
    boxes, _ = draw_crops(sizes, torch.Generator().manual_seed(0))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


def test_an_epoch_sees_every_image_once_and_the_last_batch_is_partial():
    plan = plan_epoch(torch.full((50, 2), 100), torch.arange(50), seed=0, epoch=1)
    batches = list(sampling.batches(plan, 16))
    assert [len(batch.index) for batch in batches] == [16, 16, 16, 2]
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(50))


def test_plans_differ_by_epoch_and_seed_and_repeat_by_both():
    sizes, chosen = torch.full((50, 2), 100), torch.arange(50)
    first, again = plan_epoch(sizes, chosen, 0, 1), plan_epoch(sizes, chosen, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert not torch.equal(first.index, plan_epoch(sizes, chosen, 0, 2).index)
    assert not torch.equal(first.index, plan_epoch(sizes, chosen, 1, 1).index)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_devices_share_each_batch_without_overlap_or_loss(world_size):
    plan = plan_epoch(torch.full((50, 2), 100), torch.arange(50), 0, 1)
    whole = list(sampling.batches(plan, 16))
    shards = [list(sampling.batches(plan, 16, rank, world_size)) for rank in range(world_size)]
    for i, batch in enumerate(whole):
        together = torch.cat([shard[i].index for shard in shards])
        assert sorted(together.tolist()) == sorted(batch.index.tolist())


def test_fraction_is_stratified_nested_and_never_empty():
    labels = torch.tensor([0] * 90 + [1] * 10)
    tenth, third, whole = (choose_fraction(labels, fraction, seed=3) for fraction in (0.1, 0.3, 1.0))
    assert labels[tenth].bincount().tolist() == [9, 1]
    assert set(tenth.tolist()) < set(third.tolist()) < set(whole.tolist())
    assert labels[choose_fraction(labels, 0.001, 3)].bincount().tolist() == [1, 1]
