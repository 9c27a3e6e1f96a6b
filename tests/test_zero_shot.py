"""The source model's own classes, as a classifier of the target's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from stages import pretrain, zero_shot
from stages.shared import artifacts
from stages.shared.model import build_model
from stages.zero_shot import choose_sources, load_source_model, measure
from tests.experiment import write_params
from tests.finished_experiment import write_split

NAMES = ("hotdog", "not-hotdog")


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (40, 5))


def test_the_score_is_the_models_own_probability_of_the_class(logits):
    labels = np.arange(40) % 2
    metrics = measure(logits, labels, choose_sources({"hotdog": 3}, NAMES, 5))
    probability = softmax(logits, axis=1)[:, 3]
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(labels == 0, probability))
    assert metrics["threshold_accuracy"] == np.mean((probability > 0.5) == (labels == 0))
    assert metrics["test_loss"] == pytest.approx(-np.log(np.where(labels == 0, probability, 1 - probability)).mean())
    assert metrics["test_accuracy"] == np.mean((logits.argmax(axis=1) == 3) == (labels == 0))
    assert metrics["recall"][0] == np.mean(logits[labels == 0].argmax(axis=1) == 3)


def test_three_classes_have_no_roc_but_a_top_1(logits):
    metrics = measure(logits, np.arange(40) % 3, choose_sources({"a": 0, "b": 1}, ("a", "b", "c"), 5))
    assert metrics["roc_auc"] is None
    assert 0 < metrics["test_accuracy"] < 1


@pytest.mark.parametrize(
    ("named", "names", "message"),
    [
        ({"sausage": 1}, NAMES, "zero_shot names sausage; the data's classes are hotdog, not-hotdog"),
        ({"hotdog": 5}, NAMES, "zero_shot names the source classes {'hotdog': 5}; the source model has 5"),
        ({"a": 1}, ("a", "b", "c"), "zero_shot leaves b, c unnamed"),
    ],
)
def test_classes_that_do_not_fit_are_refused_by_name(named, names, message):
    with pytest.raises(ValueError, match=message):
        choose_sources(named, names, 5)


def test_where_no_class_is_named_nothing_is_measured_and_metrics_say_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"zero_shot": []})
    zero_shot.main()
    assert json.loads(artifacts.ZERO_SHOT.read_text()) == {
        "measured": False,
        "reason": "zero_shot names no class of the source model",
    }


def write_train_split(labels: np.ndarray) -> None:
    """A training split of noise, 40 pixels a side."""
    artifacts.TRAIN_SPLIT.mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (len(labels), 40, 40, 3), dtype=np.uint8)
    sizes = np.full((len(labels), 2), 40, dtype=np.int32)
    for name, array in {"pixels": pixels, "sizes": sizes, "labels": labels}.items():
        np.save(artifacts.TRAIN_SPLIT / f"{name}.npy", array)


def test_the_stage_measures_the_source_model_on_the_test_split(tmp_path: Path, monkeypatch, capsys) -> None:
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    architecture = {"model.architecture": "shufflenet_v2_x0_5", "preprocess.resize": 32, "preprocess.crop": 32}
    write_params(tmp_path, architecture | {"zero_shot": ["hotdog@3"], "runtime.device": "cpu"})
    write_split(NAMES, 10)
    write_train_split(np.arange(6) % 2)
    torch.manual_seed(0)
    weights = artifacts.source_weights("IMAGENET1K_V1")
    weights.parent.mkdir(parents=True)
    save_file(build_model("shufflenet_v2_x0_5", 7, 32).state_dict(), weights)
    zero_shot.main()
    metrics = json.loads(artifacts.ZERO_SHOT.read_text())
    assert metrics["measured"] is True
    assert metrics["num_images"] == 10
    low, high = metrics["validation_accuracy_low"], metrics["validation_accuracy_high"]
    assert 0 <= low <= metrics["validation_accuracy"] <= high <= 1
    assert metrics["validation_accuracy"] * 6 == pytest.approx(round(metrics["validation_accuracy"] * 6))
    assert metrics["validation_loss"] > 0
    assert metrics["device"].startswith("cpu")
    assert f"top-1 {metrics['test_accuracy']:.3f}, ROC-AUC {metrics['roc_auc']} on 10 images" in capsys.readouterr().out


def test_weights_that_exist_are_not_pretrained(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"model.weights": "IMAGENET1K_V1"})
    pretrain.main()
    assert [path.name for path in artifacts.PRETRAIN.iterdir()] == ["summary.json"]
    assert json.loads((artifacts.PRETRAIN / "summary.json").read_text())["trained"] is False


def test_the_source_model_keeps_its_whole_head(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = build_model("mobilenet_v3_small", 7, 64).eval()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model, num_classes = load_source_model("mobilenet_v3_small", 64, tmp_path / "weights.safetensors")
    assert num_classes == 7
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), source(images))
