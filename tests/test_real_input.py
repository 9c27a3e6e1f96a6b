"""The main job on a handful of real photos and a real source model, where they are at hand."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.experiment import REAL, TINY, make_project, stage

pytestmark = pytest.mark.skipif(
    not REAL.exists(), reason="skipped: ../shared/real (real photos and weights) is not here"
)

NUM_EACH = {"train": 6, "test": 3}  # photos a class


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    with zipfile.ZipFile(REAL / "hotdog-small.zip") as archive:
        for split, num in NUM_EACH.items():
            for class_name in ("hotdog", "not-hotdog"):
                names = [name for name in archive.namelist() if name.startswith(f"hotdog/{split}/{class_name}/")]
                for name in sorted(names)[:num]:
                    archive.extract(name, folder)
    return folder


@pytest.mark.parametrize(
    ("architecture", "weights", "whole"),
    [
        ("resnet18", "resnet18-food100.pth", False),
        pytest.param("resnet18", "resnet18-food100.pth", True, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", "mobilenet_v2-imagenet.pth", True, marks=pytest.mark.slow),
    ],
)
def test_real_photos_and_weights_go_through(tmp_path, photos, architecture, weights, whole):
    sizes = {"preprocess.resize": 72, "preprocess.crop": 64, "train.finetune.epochs": 1, "export.recipe": "finetune"}
    model = {"model.architecture": architecture, "model.weights": str(REAL / weights)}
    project = make_project(tmp_path, {**TINY, **sizes, **model, "dataset.source": str(photos)})
    stages = [
        ("download", "dataset"), ("download", "model"), ("pretrain",), ("preprocess",), ("features",), ("inspect",),
        ("train", "finetune"), ("evaluate", "finetune"),
    ]  # fmt: skip
    for arguments in [*stages, ("export",), ("check_parity",)] if whole else stages:
        done = stage(project, *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
    metrics = json.loads((project / "artifacts/evaluate/finetune/metrics.json").read_text())
    assert 0 <= metrics["test_accuracy"] <= 1
    assert (project / "artifacts/model.onnx").exists() == whole
