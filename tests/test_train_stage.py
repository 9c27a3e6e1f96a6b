"""The train stage through its own entry: without augmentation, on several devices, and when one of them fails."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.preprocess import __main__ as preprocess
from stages.shared import artifacts, checkpoint, distributed
from stages.shared.checkpoint import Facts, load_checkpoint
from stages.shared.params import load_params
from stages.shared.transforms import Transform
from stages.train import __main__ as train
from stages.train.model import Start, make_model
from tests.experiment import ROOT, write_params
from tests.test_bad_data import write_folds, write_images

PHOTOS = {"train/a": 6, "train/b": 6, "test/a": 2, "test/b": 2}


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes that the stage starts
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def trained() -> dict[str, float]:
    metrics: dict[str, float] = json.loads((artifacts.train_dir("finetune") / "metrics.json").read_text())
    return metrics


def test_a_frozen_backbone_without_augmentation_trains_its_head_alone() -> None:
    write_images(PHOTOS, **{"train.finetune.augmentation": "none", "train.finetune.freeze": "backbone"})
    preprocess.main()
    write_folds()
    train.main("finetune")
    model, facts = load_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors")
    assert facts.recipe == "finetune"
    assert trained()["num_trainable"] == sum(p.numel() for p in model.fc.parameters()) < trained()["num_parameters"]
    assert not (artifacts.CACHE / "train" / "finetune").exists() or not any(
        (artifacts.CACHE / "train" / "finetune").iterdir()
    )


@pytest.mark.slow
def test_two_processes_train_on_every_image_once_and_write_one_checkpoint() -> None:
    one_step = {"train.finetune.batch_size": 12, "train.finetune.precision": "float32"}  # later ones would drift apart
    write_images(PHOTOS, **{"runtime.num_devices": 2, "runtime.batch_norm": "exact", **one_step})
    preprocess.main()
    write_folds()
    train.main("finetune")
    two = trained()
    load_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors")
    (artifacts.train_dir("finetune") / "metrics.json").unlink()
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("num_devices: 2", "num_devices: 1"))
    train.main("finetune")
    assert two["train_loss"] == pytest.approx(trained()["train_loss"], rel=1e-4)
    assert two["train_accuracy"] == trained()["train_accuracy"]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_stage_with_its_code_and_no_checkpoint() -> None:
    write_images(PHOTOS, **{"runtime.num_devices": 2, "train.finetune.lr": 1e5})
    preprocess.main()
    write_folds()
    with pytest.raises(SystemExit) as end:
        train.main("finetune")
    assert end.value.code == 1
    assert not (artifacts.train_dir("finetune") / "checkpoint.safetensors").exists()


def test_more_cuda_devices_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"runtime\.num_devices is 2, but torch finds 1 CUDA device\(s\)"):
        distributed.launch("stages.train", ["finetune"], 2, torch.device("cuda"))


def test_a_head_of_a_class_that_the_data_has_not_is_refused() -> None:
    start = Start(source=None, head_rows={"sausage": 3}, head=None, freeze="none", exact_batch_norm=False)
    with pytest.raises(ValueError, match="head names sausage; the data's classes are a, b"):
        make_model("shufflenet_v2_x0_5", ("a", "b"), 32, start, seed=0)


def test_without_a_recipe_the_recipes_are_named(tmp_path: Path) -> None:
    write_params(tmp_path, {})
    with pytest.raises(ValueError, match=r"run python -m stages\.train with one of finetune, scratch"):
        train.main()


@pytest.mark.parametrize("change", ["batch_norm", "step", "code", "images", "recipe"])
def test_a_run_goes_on_only_from_what_was_computed_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The resume file's name tells all that shapes the arithmetic."""
    write_params(tmp_path, {})
    params = load_params()
    facts = Facts("resnet18", ("a", "b"), Transform(32, 32, (0.5,) * 3, (0.5,) * 3), "finetune", 0, None, "d" * 64)
    code = tmp_path / "code"
    shutil.copytree(ROOT / "stages/shared", code)
    monkeypatch.setattr(checkpoint, "__file__", str(code / "checkpoint.py"))
    given = {"recipe": params.train["finetune"], "facts": facts, "folds": np.arange(4), "runtime": params.runtime}
    before = train.fingerprint(**given, machine={})
    assert train.fingerprint(**given, machine={}) == before
    if change == "code":
        (code / "steps.py").write_text((code / "steps.py").read_text() + "\n")
    elif change == "images":
        given["folds"] = np.array([0, 1, 2, -1])
    elif change == "recipe":
        given["recipe"] = params.train["scratch"]
    else:
        other = {"batch_norm": "exact", "step": "eager"}[change]
        given["runtime"] = params.runtime.model_copy(update={change: other})
    assert train.fingerprint(**given, machine={}) != before


def test_missing_source_weights_say_what_to_run(tmp_path: Path) -> None:
    write_images(PHOTOS, **{"train.finetune.init": "pretrained"})
    preprocess.main()
    write_folds()
    with pytest.raises(
        ValueError, match=r"weights\.safetensors: no such file; run python -m stages\.pretrain, or dvc repro"
    ):
        train.main("finetune")
