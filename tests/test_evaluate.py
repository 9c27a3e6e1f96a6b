"""Evaluate: a checkpoint on a test split, through the stage's own entry."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.evaluate import __main__ as evaluate
from stages.evaluate.__main__ import check_finite, main
from stages.shared import artifacts
from stages.shared.checkpoint import Facts, save_checkpoint
from stages.shared.dataset import NOT_IN_TEST, save_labels_before_fixes
from stages.shared.model import build_model
from stages.shared.transforms import Transform
from tests.experiment import write_params
from tests.finished_experiment import write_split

CLASSES = ("hotdog", "not-hotdog")


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"runtime.device": "cpu", "evaluate.bootstrap_samples": 100})


def save_model(class_names=CLASSES) -> None:
    torch.manual_seed(0)
    architecture = "shufflenet_v2_x0_5"
    facts = Facts(
        architecture=architecture,
        class_names=tuple(class_names),
        transform=Transform(32, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        recipe="finetune",
        seed=0,
        source_digest=None,
        data_digest="d" * 64,
    )
    save_checkpoint(
        artifacts.train_dir("finetune") / "checkpoint.safetensors",
        build_model(architecture, len(class_names), 32),
        facts,
    )


def read(name: str) -> list[dict[str, str]]:
    with (artifacts.evaluate_dir("finetune") / name).open(newline="") as file:
        return list(csv.DictReader(file))


def metrics() -> dict:
    return json.loads((artifacts.evaluate_dir("finetune") / "metrics.json").read_text())


def test_every_image_is_predicted_once_in_the_order_of_the_split():
    labels = write_split(CLASSES, 10)
    save_model()
    main("finetune")
    rows = read("predictions.csv")
    assert list(rows[0]) == ["path", "label", "prediction", "p_hotdog", "p_not-hotdog", "correct"]
    assert [row["label"] for row in rows] == [CLASSES[label] for label in labels]
    assert [row["path"] for row in rows] == [
        f"test/{CLASSES[label]}/{index:03}.png" for index, label in enumerate(labels)
    ]
    assert all(float(row["p_hotdog"]) + float(row["p_not-hotdog"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert metrics()["test_accuracy"] == np.mean([row["correct"] == "1" for row in rows])
    assert [row["predicted"] for row in read("confusion.csv")] == [row["prediction"] for row in rows]


def test_scores_by_the_labels_before_the_fix_list_stand_beside_those_after():
    labels = write_split(CLASSES, 10)
    save_model()
    main("finetune")
    assert metrics()["before_fixes"] is None
    right = [row["correct"] == "1" for row in read("predictions.csv")]
    before = labels.copy()
    before[:3] = 1 - labels[:3]  # three were relabelled
    before[9] = NOT_IN_TEST
    save_labels_before_fixes(artifacts.TEST_SPLIT, before)
    main("finetune")
    found = metrics()["before_fixes"]
    expected = np.mean([not value if row < 3 else value for row, value in enumerate(right[:9])])
    assert (found["num_images"], found["num_relabelled"]) == (9, 3)
    assert found["test_accuracy"] == expected
    assert found["test_accuracy_low"] < expected < found["test_accuracy_high"]


def test_evaluation_is_the_same_bytes_twice():
    write_split(CLASSES, 10)
    save_model()
    main("finetune")
    first = {path.name: path.read_bytes() for path in artifacts.evaluate_dir("finetune").iterdir()}
    main("finetune")
    assert {path.name: path.read_bytes() for path in artifacts.evaluate_dir("finetune").iterdir()} == first
    assert set(first) == {"metrics.json", "predictions.csv", "confusion.csv", "roc.csv", "calibration.csv"}


def test_three_classes_have_no_roc_but_all_else():
    write_split("abc", 9)
    save_model("abc")
    main("finetune")
    assert metrics()["roc_auc"] is None
    assert set(metrics()["per_class"]) == set("abc")
    assert read("roc.csv") == []


def test_the_fast_way_gives_the_exact_ways_predictions_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # takes a minute; test_inference.py compiles
    write_split(CLASSES, 10)
    save_model()
    main("finetune")
    exact = read("predictions.csv")
    write_params(tmp_path, {"runtime.device": "cpu", "evaluate.execution": "fast", "evaluate.bootstrap_samples": 100})
    main("finetune")
    assert [float(row["p_hotdog"]) for row in read("predictions.csv")] == pytest.approx(
        [float(row["p_hotdog"]) for row in exact], abs=0.01
    )
    assert metrics()["execution"] == "fast"
    assert 0 <= metrics()["same_top1"] <= 1


def test_a_fast_way_that_is_off_is_refused(tmp_path, monkeypatch):
    def upside_down(*_, **__):
        return lambda pixels: np.tile(np.array([[-50, 50]], np.float32), (len(pixels), 1))

    monkeypatch.setattr(evaluate, "fast_predictor", upside_down)
    write_params(tmp_path, {"runtime.device": "cpu", "evaluate.execution": "fast"})
    write_split(CLASSES, 10)
    save_model()
    with pytest.raises(ValueError, match=r"logits are off by .*set it to exact"):
        main("finetune")
    assert not artifacts.evaluate_dir("finetune").exists()


def test_unknown_recipe_names_those_there_are():
    with pytest.raises(ValueError, match=r"no recipe 'fintune' .*finetune, scratch"):
        main("fintune")


def test_checkpoint_of_other_classes_is_refused():
    write_split(("cat", "dog"), 4)
    save_model()
    with pytest.raises(
        ValueError, match=r"trained on the classes hotdog, not-hotdog, but .* cat, dog; run train again"
    ):
        main("finetune")


def test_checkpoint_of_other_data_is_refused():
    write_split(CLASSES, 4)
    save_model()
    artifacts.MANIFEST.write_text(artifacts.MANIFEST.read_text().replace("d" * 64, "e" * 64))
    with pytest.raises(ValueError, match="other data"):
        main("finetune")


def test_empty_test_split_is_refused():
    write_split(CLASSES, 0)
    save_model()
    with pytest.raises(ValueError, match="no images"):
        main("finetune")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(tmp_path, value):
    logits = np.zeros((4, 2), np.float32)
    logits[2, 1] = value
    with pytest.raises(ValueError, match=r"1 of 4 test images \(the first is number 2\).*lower"):
        check_finite(tmp_path / "checkpoint.safetensors", logits)


def test_the_fast_way_is_judged_on_images_from_all_over_the_split(monkeypatch):
    """Splits are ordered by class: a fault that shows in the last class alone must not pass."""
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 4, 4, 3), dtype=np.uint8)

    def exact(model, pixels, transform, **how):
        return pixels.reshape(len(pixels), -1)[:, :2].astype(np.float32)

    def wrong_at_the_end(pixels):
        logits = exact(None, pixels, None)
        logits[1500:] += 100
        return logits

    monkeypatch.setattr(evaluate, "predict_logits", exact)
    monkeypatch.setattr(evaluate, "fast_predictor", lambda *_, **__: wrong_at_the_end)
    facts = SimpleNamespace(transform=None)
    with pytest.raises(ValueError, match=r"evaluate\.execution is fast, whose logits are off by"):
        evaluate.predict(None, pixels, facts, torch.device("cpu"), "fast")
