"""A recipe is judged on training images that it was not trained on, and its head is as sure as it is right."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_model
from torch import nn

from stages.preprocess import __main__ as preprocess
from stages.shared import artifacts, training
from stages.shared.checkpoint import digest, load_checkpoint
from stages.shared.dataset import TrainSplit, load_train_split
from stages.shared.files import read_json
from stages.shared.held_out import Validation, load_folds, load_validation, save_folds
from stages.shared.model import build_model, head_parameters, scale_logits, set_head
from stages.shared.params import load_params
from stages.shared.training import Epoch
from stages.shared.transforms import Transform
from stages.train import __main__ as train
from stages.train.validation import held_out_folds, mean_interval, measure, validate
from tests.test_bad_data import write_images

CPU = torch.device("cpu")
FOLDS = np.array([0, 1, 2, -1, 0, 1, 2, 0, 1, 2, 0, 1])
TRANSFORM = Transform(36, 32, (0.5,) * 3, (0.25,) * 3)


class Tells(nn.Module):
    """Logits that tell which fold the model was trained without, and how bright an image is."""

    def __init__(self, fold: int):
        super().__init__()
        self.fold = nn.Parameter(torch.tensor(float(fold)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.fold.expand(len(images)), images.mean((1, 2, 3))], 1)


@pytest.fixture
def split() -> TrainSplit:
    """Twelve images, each of one grey of its own, and of two classes in turn."""
    pixels = np.repeat(np.arange(12, dtype=np.uint8) * 20, 40 * 40 * 3).reshape(12, 40, 40, 3)
    return TrainSplit(pixels, np.full((12, 2), 40, np.int32), np.arange(12, dtype=np.int64) % 2)


@pytest.mark.parametrize(("how", "expected"), [("none", []), ("holdout", [0]), ("folds", [0, 1, 2])])
def test_each_held_out_image_is_judged_once_by_a_model_trained_without_it(split, how, expected):
    asked = []

    def train_without(fold: int) -> nn.Module:
        asked.append(fold)
        return Tells(fold)

    found, temperature = validate(train_without, split, FOLDS, how, TRANSFORM, 2, CPU, calibrated=False, balanced=False)
    assert asked == expected
    assert sorted(found.rows) == [row for row in range(12) if FOLDS[row] in expected]
    assert found.logits[:, 0].tolist() == FOLDS[found.rows].tolist()
    assert found.logits[:, 1] == pytest.approx((found.rows * 20 / 255 - 0.5) / 0.25, abs=1e-5)
    assert found.labels.tolist() == (found.rows % 2).tolist()
    assert (found.logits.dtype, found.rows.dtype, temperature) == (np.float32, np.int64, 1.0)


def test_validation_logits_are_divided_by_the_temperature_that_is_reported(split):
    (plain, _), (calibrated, temperature) = (
        validate(lambda _: Tells(9), split, FOLDS, "folds", TRANSFORM, 2, CPU, calibrated=calibrated, balanced=False)
        for calibrated in (False, True)
    )
    assert temperature > 1.05  # always the first class, and very sure of it
    assert calibrated.logits == pytest.approx(plain.logits / temperature, rel=1e-6)
    assert measure(calibrated)["validation_loss"] < measure(plain)["validation_loss"]


def test_validation_is_reported_with_intervals_and_null_where_there_is_none(split):
    found = measure(validate(Tells, split, FOLDS, "folds", TRANSFORM, 2, CPU, calibrated=False, balanced=False)[0])
    assert list(found) == [f"validation_{name}{end}" for name in ("accuracy", "loss") for end in ("", "_low", "_high")]
    for name in ("validation_accuracy", "validation_loss"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    nothing = measure(validate(Tells, split, FOLDS, "none", TRANSFORM, 2, CPU, calibrated=False, balanced=False)[0])
    assert set(nothing.values()) == {None}
    assert list(nothing) == list(found)


def test_the_interval_of_a_mean_of_few_skewed_losses_covers_it_nearly_as_often_as_it_says():
    """Of 60: Student's t leaves out a little more than 5 % where a few losses are large. Of 300 it does not, below."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(500):
        low, high = mean_interval(generator.exponential(0.5, 60))
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / 500 <= 0.97


def test_nominal_95_percent_intervals_of_accuracy_and_loss_cover_93_to_97_percent():
    """1,000 resamples of 300 drawn images; the truth is known from all of which they are drawn."""
    generator = np.random.default_rng(0)
    labels, logits = np.zeros(10**5, np.int64), generator.normal([1.5, 0.0, 0.0], 1.0, (10**5, 3)).astype(np.float32)
    truth = measure(Validation(labels, labels, logits))
    covered = {"validation_accuracy": 0, "validation_loss": 0}
    for _ in range(1000):
        chosen = generator.integers(len(labels), size=300)
        found = measure(Validation(chosen, labels[chosen], logits[chosen]))
        for name in covered:
            covered[name] += found[f"{name}_low"] <= truth[name] <= found[f"{name}_high"]
    assert all(0.93 <= count / 1000 <= 0.97 for count in covered.values()), covered


def test_too_few_folds_are_refused_by_the_key_to_change():
    with pytest.raises(
        ValueError, match=r"validation: holdout needs .* at least two folds, they are in 1; set validation: none"
    ):
        held_out_folds(np.array([0, 0, -1]), "holdout")


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_a_temperature_in_the_head_divides_the_logits(architecture):
    torch.manual_seed(0)
    model, images = build_model(architecture, 3, 64).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        scale_logits(model, head_parameters(architecture, 64), 0.5)
        assert torch.allclose(model(images), before / 2, rtol=1e-5, atol=1e-6)


def test_a_probe_is_put_into_the_head():
    model, head = build_model("mobilenet_v2", 2, 64), head_parameters("mobilenet_v2", 64)
    weight, bias = np.random.default_rng(0).normal(size=(2, 1280)).astype(np.float32), np.ones(2, np.float32)
    set_head(model, head, weight, bias)
    assert np.array_equal(model.classifier[1].weight.detach().numpy(), weight)
    assert model.classifier[1].bias.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"head: probe does not fit classifier\.1\.weight of shape \(2, 1280\)"):
        set_head(model, head, weight[:, :5], bias)


def test_a_probe_is_not_put_into_a_head_that_is_not_linear():
    model, head = build_model("squeezenet1_1", 2, 64), head_parameters("squeezenet1_1", 64)
    with pytest.raises(
        ValueError,
        match=r"classifier\.1 is a Conv2d: set head: random for this recipe, remove it, or take another model\.architecture$",
    ):
        set_head(model, head, np.zeros((2, 512), np.float32), np.zeros(2, np.float32))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Twelve photos, preprocessed, with folds and features; what a test adds to finetune's recipe."""
    monkeypatch.chdir(tmp_path)
    write_images({"train/a": 6, "train/b": 6, "test/a": 2, "test/b": 2})
    preprocess.main()
    save_folds(artifacts.INSPECTION / "folds.npz", np.array([0, 1, 2, 0, 1, -1] * 2))
    labels = np.asarray(load_train_split(artifacts.TRAIN_SPLIT).labels)
    features = np.random.default_rng(0).normal(size=(12, 1024)).astype(np.float32) + labels[:, None]
    artifacts.FEATURES.mkdir(parents=True)
    save_file({"crop": features, "mirror": features}, artifacts.FEATURES / "train.safetensors")
    return {}


def run(**recipe: object) -> dict[str, object]:
    write_images({}, **{f"train.finetune.{key}": value for key, value in recipe.items()})
    train.main("finetune")
    return read_json(artifacts.train_dir("finetune") / "metrics.json")


def test_the_stage_validates_and_then_trains_on_all_that_take_part(project):
    plain = run(epochs=1, validation="none")
    model, _ = load_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors")
    validated = run(epochs=1, validation="folds")
    again, _ = load_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors")
    assert digest(again) == digest(model)  # what was held out leaves no trace in what is trained at last
    assert plain["validation_accuracy"] is None
    assert 0 <= validated["validation_accuracy"] <= 1
    validation = load_validation(artifacts.train_dir("finetune") / "validation.npz")
    assert sorted(validation.rows) == [row for row in range(12) if row not in (5, 11)]
    assert validation.logits.shape == (10, 2)
    assert not list((artifacts.CACHE / "train" / "finetune").glob("*"))


def test_the_probe_learns_from_every_view_of_an_image(project):
    split, noise = load_train_split(artifacts.TRAIN_SPLIT), np.random.default_rng(1).normal(size=(2, 12, 8))
    noise[:, :, 3], corners = 0, np.zeros((4, 12, 8))
    corners[:, :, 3] = 4 * np.asarray(split.labels) - 2  # what tells the classes apart is seen in the corners alone
    views = {"crop": noise[0], "mirror": noise[1], "corners": corners}
    save_file({k: v.astype(np.float32) for k, v in views.items()}, artifacts.FEATURES / "train.safetensors")
    folds = load_folds(artifacts.INSPECTION / "folds.npz", len(split))
    head = train.fit_head(split, folds, load_params().train["finetune"], 2).head
    assert np.abs(head.weight[1] - head.weight[0]).argmax() == 3


def test_a_resumed_cross_fit_equals_an_undisturbed_one(project, monkeypatch):
    """Interrupted in the second of three folds, with a probe as head, averaged weights, a temperature."""
    source = artifacts.source_weights("synthetic")
    source.parent.mkdir(parents=True)
    save_model(build_model("shufflenet_v2_x0_5", 7, 64), source)
    tuned = {
        "init": "pretrained", "head": "probe", "validation": "folds", "calibration": "temperature", "epochs": 2,
        "momentum": 0.9, "ema": 0.9, "schedule": "cosine", "batch_norm": "frozen", "loss": "mean", "class_weights": "balanced",
    }  # fmt: skip
    undisturbed = run(**tuned)

    def interrupt(name: str, done: Epoch, epochs: int) -> str:
        if "fold 1" in name and done.epoch == 1:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(training, "describe", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(**tuned)
    assert list((artifacts.CACHE / "train" / "finetune").rglob("*fold 1.pt"))
    resumed = run(**tuned)
    for key in ("weights_digest", "result", "train_loss", "validation_loss", "temperature"):
        assert resumed[key] == undisturbed[key]


def test_a_mirrored_recipe_is_validated_as_it_answers(project):
    run(epochs=1, validation="holdout", mirror=True, calibration="temperature")
    mirrored, facts = load_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors")
    of_mirrored = load_validation(artifacts.train_dir("finetune") / "validation.npz").logits
    run(epochs=1, validation="holdout")
    plain, _ = load_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors")
    of_plain = load_validation(artifacts.train_dir("finetune") / "validation.npz").logits
    assert of_mirrored.shape == of_plain.shape
    assert not np.allclose(of_mirrored / np.ptp(of_mirrored), of_plain / np.ptp(of_plain), rtol=1e-4)
    assert facts.mirror
    assert {f"network.{name}" for name in plain.state_dict()} == set(mirrored.state_dict())


def test_a_calibrated_head_gives_the_calibrated_logits(project):
    plain = run(epochs=1, validation="holdout")
    model, facts = load_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors")
    calibrated = run(epochs=1, validation="holdout", calibration="temperature")
    scaled, _ = load_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors")
    images = torch.randn(2, 3, facts.transform.crop, facts.transform.crop)
    with torch.no_grad():
        expected = model(images) / calibrated["temperature"]
        assert torch.allclose(scaled(images), expected, rtol=1e-4, atol=1e-6)
    assert plain["temperature"] == 1.0 != calibrated["temperature"]
