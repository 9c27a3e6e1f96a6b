"""The loop is the book's: summed losses, two rates; seeded, resumable, the same on any number of devices."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.shared.checkpoint import digest
from stages.shared.dataset import TrainSplit
from stages.shared.model import build_model, head_parameters, param_groups
from stages.shared.sampling import plan_epoch, steps
from stages.shared.training import fit
from stages.shared.transforms import crop_each, normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
ARCHITECTURE = "shufflenet_v2_x0_5"


@pytest.fixture
def split() -> TrainSplit:
    """Two classes that differ in brightness, 20 images of up to 40 px."""
    rng = np.random.default_rng(0)
    labels = np.arange(20, dtype=np.int64) % 2
    pixels = np.clip(rng.normal(90 + 70 * labels[:, None, None, None], 40, (20, 40, 40, 3)), 0, 255).astype(np.uint8)
    return TrainSplit(pixels, np.full((20, 2), 40, np.int32), labels)


def model_and_groups(lr: float = 0.002, multiplier: float = 10, architecture: str = ARCHITECTURE, crop: int = 32):
    torch.manual_seed(0)
    model = build_model(architecture, 2, crop)
    return model, param_groups(model, head_parameters(architecture, crop), lr, multiplier)


def train(model, groups, split, **changed):
    arguments = {
        "crop": 32, "mean": MEAN, "std": STD, "seed": 0, "epochs": 2, "batch_size": 8, "momentum": 0.0, "weight_decay": 0.001,
        "device": CPU, "precision": torch.float32, "execution": "eager",
    }  # fmt: skip
    return fit(model, groups, split, torch.arange(len(split)), **(arguments | changed))


def test_one_epoch_equals_the_books_loop_written_out(split):
    model, groups = model_and_groups()
    history = train(model, groups, split, epochs=1)

    plain, groups = model_and_groups()
    plain = plain.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(groups, weight_decay=0.001)
    draws = plan_epoch(torch.from_numpy(split.sizes), torch.arange(20), 0, 1)
    loss_sum = 0.0
    for batch in steps(draws, 8):
        images = normalize(crop_each(torch.from_numpy(split.pixels), *batch, 32), MEAN, STD, torch.float32)
        loss = F.cross_entropy(plain(images), torch.from_numpy(split.labels)[batch.index], reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
    for own, expected in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(own, expected, rtol=1e-4, atol=1e-6)
    assert history[0].train_loss == pytest.approx(loss_sum / 20, rel=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_two_seeded_runs_are_bitwise_equal(split, precision):
    runs = [model_and_groups() for _ in range(2)]
    for model, groups in runs:
        train(model, groups, split, precision=precision)
    assert digest(runs[0][0]) == digest(runs[1][0])


def test_another_seed_gives_another_model(split):
    runs = [model_and_groups() for _ in range(2)]
    for seed, (model, groups) in enumerate(runs):
        train(model, groups, split, seed=seed)
    assert digest(runs[0][0]) != digest(runs[1][0])


def test_training_learns(split):
    model, groups = model_and_groups(lr=0.001, multiplier=1)
    history = train(model, groups, split, epochs=12, momentum=0.9)
    assert history[-1].train_loss < history[0].train_loss / 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_resumed_run_equals_an_undisturbed_one(split, tmp_path, momentum):
    undisturbed, groups = model_and_groups()
    expected = train(undisturbed, groups, split, epochs=3, momentum=momentum)

    resume_path = tmp_path / "resume.pt"
    interrupted, groups = model_and_groups()
    train(interrupted, groups, split, epochs=2, momentum=momentum, resume_path=resume_path)
    fresh, groups = model_and_groups()
    history = train(fresh, groups, split, epochs=3, momentum=momentum, resume_path=resume_path)

    assert digest(fresh) == digest(undisturbed)
    assert [epoch.train_loss for epoch in history] == [epoch.train_loss for epoch in expected]


def test_a_loss_that_is_not_finite_stops_with_recipe_epoch_step_and_lr(split, tmp_path):
    model, groups = model_and_groups(lr=1e30)
    resume_path = tmp_path / "resume.pt"
    with pytest.raises(ValueError, match=r"finetune: the loss is nan in epoch 1 at step [23], at lr 1e\+30, 1e\+31"):
        train(model, groups, split, resume_path=resume_path, name="finetune")
    assert not resume_path.exists()


def test_one_image_to_a_batch_of_one_value_per_channel_is_explained(split):
    torch.manual_seed(0)
    model = build_model("resnet18", 2, 32)
    with pytest.raises(ValueError, match=r"batch norm needs more than one value per channel.*change batch_size"):
        train(model, param_groups(model, ("fc.weight", "fc.bias"), 0.001, 1), split, batch_size=1)


def test_a_batch_larger_than_the_set_is_one_step(split):
    model, groups = model_and_groups()
    assert len(train(model, groups, split, batch_size=1000, epochs=1)) == 1


def test_a_cuda_graph_without_cuda_is_refused(split):
    with pytest.raises(ValueError, match=r"runtime.step is graph, which needs CUDA"):
        train(*model_and_groups(), split, execution="graph")


RANK = """
import sys, torch, numpy as np
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_training import model_and_groups, train
from stages.shared.dataset import TrainSplit
from stages.shared.distributed import process_group, rank_and_world_size, with_exact_batch_norm
with process_group(torch.device("cpu")):
    arrays = np.load(sys.argv[1])
    split = TrainSplit(arrays["pixels"], arrays["sizes"], arrays["labels"])
    model, groups = model_and_groups(lr=0.0003, architecture="resnet18", crop=64)
    train(with_exact_batch_norm(model), groups, split, precision=torch.float64, batch_size=9, crop=64)
    if rank_and_world_size()[0] == 0:
        torch.save(model.state_dict(), sys.argv[2])
"""


@pytest.mark.parametrize("num_devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_equal_one_in_float64(split, tmp_path, num_devices):
    """With batches of 9, 9 and 2 the shards are uneven, and one of three processes has no share of the last batch."""
    np.savez(tmp_path / "split.npz", pixels=split.pixels, sizes=split.sizes, labels=split.labels)
    (tmp_path / "rank.py").write_text(RANK.format(root=str(Path(__file__).parents[1])))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_devices}"]
    subprocess.run(
        [*torchrun, tmp_path / "rank.py", tmp_path / "split.npz", tmp_path / "several.pt"], check=True, timeout=120
    )

    model, groups = model_and_groups(lr=0.0003, architecture="resnet18", crop=64)
    train(model, groups, split, precision=torch.float64, batch_size=9, crop=64)
    several = torch.load(tmp_path / "several.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert (value.double() - several[name].double()).abs().max() < 1e-12, name
