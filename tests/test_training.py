"""The loop is the book's: summed losses, two rates; seeded, resumable, the same on any number of devices."""

import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flows import warm
from stages.shared import training
from stages.shared.checkpoint import digest
from stages.shared.dataset import TrainSplit
from stages.shared.model import build_model, head_parameters
from stages.shared.optimization import Optimization, param_groups
from stages.shared.reproducibility import Execution
from stages.shared.sampling import Augmentation, Sampling, batches, plan_epoch
from stages.shared.training import fit
from stages.shared.transforms import Transform, normalize
from tests.exact_crops import crop_each
from tests.experiment import environment, free_port, warm_python

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


def model_and_head(architecture: str = ARCHITECTURE, crop: int = 32):
    torch.manual_seed(0)
    return build_model(architecture, 2, crop), head_parameters(architecture, crop)


def train(model, head, split, *, lr=0.002, multiplier=10.0, crop=32, resume_path=None, name="train", **changed):
    """Two epochs in batches of 8; `changed` are fields of Augmentation, Optimization, Execution and Sampling."""

    def own(kind: type, **usual: Any) -> dict[str, Any]:
        return usual | {field.name: changed.pop(field.name) for field in fields(kind) if field.name in changed}

    augmentation = Augmentation(**own(Augmentation))
    optimization = Optimization(lr, **own(Optimization, head_lr_multiplier=multiplier, weight_decay=0.001))
    execution = Execution(**own(Execution, device=CPU, precision=torch.float32, step="eager"))
    usual = {"chosen": torch.arange(len(split)), "seed": 0, "epochs": 2, "batch_size": 8, "augmentation": augmentation}
    return fit(
        model, param_groups(model, head, optimization), split, Transform(crop * 9 // 8, crop, MEAN, STD),
        Sampling(**usual | changed), optimization, execution, resume_path=resume_path, name=name,
    )  # fmt: skip


def test_one_epoch_equals_the_books_loop_written_out(split):
    model, head = model_and_head()
    history = train(model, head, split, epochs=1)

    plain, head = model_and_head()
    plain = plain.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        param_groups(plain, head, Optimization(0.002, head_lr_multiplier=10)), weight_decay=0.001
    )
    draws = plan_epoch(torch.from_numpy(split.sizes), torch.arange(20), 0, 1)
    loss_sum = 0.0
    for batch in batches(draws, 8):
        images = normalize(
            crop_each(torch.from_numpy(split.pixels), batch.index, batch.boxes, batch.flips, 32),
            MEAN,
            STD,
            torch.float32,
        )
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
    runs = [model_and_head() for _ in range(2)]
    for model, head in runs:
        train(model, head, split, precision=precision)
    assert digest(runs[0][0]) == digest(runs[1][0])


def test_another_seed_gives_another_model(split):
    runs = [model_and_head() for _ in range(2)]
    for seed, (model, head) in enumerate(runs):
        train(model, head, split, seed=seed)
    assert digest(runs[0][0]) != digest(runs[1][0])


def test_training_learns(split):
    model, head = model_and_head()
    history = train(model, head, split, lr=0.001, multiplier=1, epochs=12, momentum=0.9)
    assert history[-1].train_loss < history[0].train_loss / 2


def interrupt_after_two(name, done, epochs):
    if done.epoch == 2:
        raise KeyboardInterrupt
    return ""


INGREDIENTS = [
    {},
    {"momentum": 0.9},
    {"optimizer": "adamw", "loss": "mean"},
    {
        "momentum": 0.9, "ema": 0.9, "schedule": "cosine", "warmup": 0.2, "layer_decay": 0.8, "batch_norm": "frozen",
        "label_smoothing": 0.1, "class_weights": (0.5, 1.5), "mixup": 0.2, "color": 0.3, "crop_scale": (0.5, 1.0),
    },
]  # fmt: skip


@pytest.mark.parametrize("how", INGREDIENTS, ids=lambda how: " ".join(how)[:20] or "book")
def test_a_resumed_run_equals_an_undisturbed_one(split, tmp_path, monkeypatch, how):
    """Interrupted after its second epoch of three, whatever the recipe is made of."""
    undisturbed, head = model_and_head()
    expected = train(undisturbed, head, split, epochs=3, **how)

    resume_path = tmp_path / "resume.pt"
    interrupted, head = model_and_head()
    with monkeypatch.context() as patch:
        patch.setattr(training, "describe", interrupt_after_two)
        with pytest.raises(KeyboardInterrupt):
            train(interrupted, head, split, epochs=3, resume_path=resume_path, **how)
    fresh, head = model_and_head()
    history = train(fresh, head, split, epochs=3, resume_path=resume_path, **how)

    assert digest(fresh) == digest(undisturbed)
    assert [epoch.train_loss for epoch in history] == [epoch.train_loss for epoch in expected]


def test_a_resume_file_is_written_no_more_often_than_asked(split, tmp_path):
    """Writing one takes longer than a short epoch."""
    train(*model_and_head(), split, epochs=2, save_every=3600.0, resume_path=tmp_path / "resume.pt")
    assert not (tmp_path / "resume.pt").exists()


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(split):
    model, head = model_and_head()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, head, split, batch_norm="frozen")
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if "running_" in name or "num_batches" in name}


def test_a_mean_loss_is_a_sum_over_the_full_batch(split):
    """At a rate as many times as high, with weight decay to match: every image weighs alike, in the tail of 4 too."""
    runs = [model_and_head() for _ in range(2)]
    train(*runs[0], split, loss="mean", lr=0.016, weight_decay=0.001, precision=torch.float64)
    train(*runs[1], split, loss="sum", lr=0.002, weight_decay=0.008, precision=torch.float64)
    for a, b in zip(runs[0][0].state_dict().values(), runs[1][0].state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_average_of_the_weights_is_what_training_ends_with(split):
    last, averaged = model_and_head(), model_and_head()
    train(*last, split)
    train(*averaged, split, ema=0.5)
    weights = [model.state_dict()["fc.weight"] for model, _ in (last, averaged)]
    assert not torch.equal(*weights)
    assert torch.allclose(*weights, atol=0.1)


def test_a_loss_that_is_not_finite_stops_with_recipe_epoch_step_and_lr(split, tmp_path):
    model, head = model_and_head()
    resume_path = tmp_path / "resume.pt"
    with pytest.raises(
        ValueError,
        match=r"finetune: the loss is nan in epoch 1 at step [23], at lr 1e\+30, 1e\+31: lower its lr in params",
    ):
        train(model, head, split, lr=1e30, resume_path=resume_path, name="finetune")
    assert not resume_path.exists()


def test_one_image_to_a_batch_of_one_value_per_channel_is_explained(split):
    torch.manual_seed(0)
    model = build_model("resnet18", 2, 32)
    with pytest.raises(ValueError, match=r"batch norm needs more than one value per channel.*change batch_size"):
        train(model, ("fc.weight", "fc.bias"), split, batch_size=1)


def test_a_batch_larger_than_the_set_is_one_step(split):
    model, head = model_and_head()
    assert len(train(model, head, split, batch_size=1000, epochs=1)) == 1


def test_a_cuda_graph_without_cuda_is_refused(split):
    with pytest.raises(ValueError, match=r"runtime.step is graph, which needs CUDA"):
        train(*model_and_head(), split, step="graph")


RANK = """
import sys, torch, numpy as np
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_training import model_and_head, train
from stages.shared.dataset import TrainSplit
from stages.shared.distributed import process_group, rank_and_world_size, with_exact_batch_norm
with process_group(torch.device("cpu")):
    arrays = np.load(sys.argv[1])
    split = TrainSplit(arrays["pixels"], arrays["sizes"], arrays["labels"])
    model, head = model_and_head("resnet18", 64)
    train(with_exact_batch_norm(model), head, split, lr=0.0003, precision=torch.float64, batch_size=9, crop=64)
    if rank_and_world_size()[0] == 0:
        torch.save(model.state_dict(), sys.argv[2])
"""


@pytest.mark.parametrize("num_devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_equal_one_in_float64(split, tmp_path, num_devices):
    """With batches of 9, 9 and 2 the shards are uneven, and one of three processes has no share of the last batch."""
    np.savez(tmp_path / "split.npz", pixels=split.pixels, sizes=split.sizes, labels=split.labels)
    (tmp_path / "rank.py").write_text(RANK.format(root=str(Path(__file__).parents[1])))
    command = [warm_python(*warm.LIBRARIES), "-m", "rank", tmp_path / "split.npz", tmp_path / "several.pt"]
    group = environment() | {
        "WORLD_SIZE": str(num_devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        subprocess.Popen(command, cwd=tmp_path, env=group | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(num_devices)
    ]  # as torchrun starts them (tests/test_nodes.py has it do so)
    assert [rank.wait(400) for rank in ranks] == [0] * num_devices

    model, head = model_and_head("resnet18", 64)
    train(model, head, split, lr=0.0003, precision=torch.float64, batch_size=9, crop=64)
    several = torch.load(tmp_path / "several.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert (value.double() - several[name].double()).abs().max() < 1e-12, name
