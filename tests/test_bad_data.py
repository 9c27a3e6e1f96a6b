"""Too little data and too little memory: a class with one image, a test split of one class, odd batches, memory that ends."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stages.compare import __main__ as compare
from stages.evaluate import __main__ as evaluate
from stages.preprocess import __main__ as preprocess
from stages.report import __main__ as report
from stages.shared import artifacts, training
from stages.shared.checkpoint import load_checkpoint
from stages.shared.dataset import TrainSplit, load_train_split
from stages.shared.held_out import save_folds
from stages.train import __main__ as train
from tests.experiment import ROOT, TINY, write_params
from tests.finished_experiment import write_experiment, write_export
from tests.test_training import model_and_head
from tests.test_training import train as fit_small

SMALL = TINY | {"runtime.device": "cpu"} | {
    f"train.{recipe}.{key}": value
    for recipe in ("finetune", "scratch")
    for key, value in {"init": "random", "epochs": 1, "batch_size": 4, "lr": 0.001}.items()
}  # fmt: skip


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_images(counts: dict[str, int], **overrides: Any) -> None:
    """params.yaml, and in each folder of images/ so many small pictures, each unlike all others."""
    write_params(Path(), SMALL | overrides)
    generator = np.random.default_rng(0)
    for folder, count in counts.items():
        (artifacts.SOURCE_DATASET / "images" / folder).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(artifacts.SOURCE_DATASET / "images" / folder / f"{index}.png")


def write_folds() -> None:
    """The training images in three folds, in turn, without a look at them."""
    num_images = len(load_train_split(artifacts.TRAIN_SPLIT))
    save_folds(artifacts.INSPECTION / "folds.npz", np.arange(num_images) % 3)


def run_recipe(recipe: str) -> dict[str, Any]:
    """Train and evaluate; returns metrics.json of evaluate."""
    write_folds()
    train.main(recipe)
    evaluate.main(recipe)
    metrics: dict[str, Any] = json.loads((artifacts.evaluate_dir(recipe) / "metrics.json").read_text())
    return metrics


def test_a_class_with_one_image_is_learnt_and_what_cannot_be_said_of_it_is_said_to_be_undefined(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its image is in the training split, and every test image is of the other class."""
    write_images({"common": 8, "rare": 1})
    preprocess.main()
    for recipe in ("finetune", "scratch"):
        metrics = run_recipe(recipe)
        assert metrics["per_class"]["rare"]["num_images"] == 0
        assert metrics["per_class"]["rare"]["recall"] is None
        assert (metrics["roc_auc"], metrics["roc_auc_low"], metrics["roc_auc_high"]) == (None, None, None)
        assert 0 <= metrics["test_accuracy_low"] <= metrics["test_accuracy"] <= metrics["test_accuracy_high"] <= 1
        assert metrics["num_images"] == metrics["per_class"]["common"]["num_images"] > 0
        assert (artifacts.evaluate_dir(recipe) / "roc.csv").read_text() == "false_positive_rate,true_positive_rate\n"
        facts = load_checkpoint(artifacts.train_dir(recipe) / "checkpoint.safetensors")[1]
        assert facts.class_names == ("common", "rare")
    assert capsys.readouterr().out.count("ROC-AUC not defined: every test image is of class common") == 2
    compare.main()
    write_export(("common", "rare"))
    report.main()
    assert [row["recipe"] for row in json.loads(artifacts.COMPARISON.read_text())] == ["finetune", "scratch"]
    assert "nan" not in artifacts.COMPARISON.with_suffix(".md").read_text().lower()
    assert ">nan<" not in artifacts.REPORT.read_text().lower()


@pytest.mark.parametrize("empty", ["train/rare", "test/rare"])
def test_a_class_without_an_image_in_a_split_of_the_users_own_is_refused(empty: str) -> None:
    write_images({"train/common": 4, "train/rare": 4, "test/common": 2, "test/rare": 2} | {empty: 0})
    with pytest.raises(
        ValueError, match=rf"no usable image in class folder .*{empty} \(it holds no file\); add images"
    ):
        preprocess.main()
    assert not artifacts.MANIFEST.exists()


def test_one_test_image_is_enough_for_the_comparison_the_report_and_the_model_card() -> None:
    write_experiment(num_images=1)
    compare.main()
    report.main()
    for row in json.loads(artifacts.COMPARISON.read_text()):
        assert row["test_accuracy"] == 1
        assert row["test_accuracy_low"] < 0.25
    card = artifacts.MODEL_CARD.read_text()
    assert "| accuracy |" in card
    assert "ROC-AUC" not in card
    assert "nan" not in card


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_any_batch_size_trains_on_all_images_once(batch_size: int) -> None:
    """At 64 px batch norm has more than one value a channel even of one image."""
    sizes = {"preprocess.resize": 72, "preprocess.crop": 64, "train.finetune.batch_size": batch_size}
    write_images({"train/a": 3, "train/b": 4, "test/a": 1, "test/b": 1}, **sizes)
    preprocess.main()
    metrics = run_recipe("finetune")
    trained = json.loads((artifacts.train_dir("finetune") / "metrics.json").read_text())
    assert trained["train_accuracy"] * 7 == pytest.approx(round(trained["train_accuracy"] * 7))
    assert np.isfinite([trained["train_loss"], metrics["test_loss"]]).all()


def noise() -> TrainSplit:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 40, 40, 3), dtype=np.uint8)
    return TrainSplit(pixels, np.full((10, 2), 40, np.int32), np.arange(10, dtype=np.int64) % 2)


def out_of_memory(error: BaseException) -> Callable[..., Callable[..., None]]:
    """Instead of `training_step`: a step for which there is no memory."""

    def step(*_: object) -> None:
        raise error

    return lambda *_, **__: step


CPU = "[enforce fail at alloc_cpu.cpp:126] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError(CPU),
        MemoryError("Unable to allocate 9. TiB for an array"),
    ],
)
def test_memory_that_ends_names_the_batch_size_and_what_to_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    fit_small(*model_and_head(), noise(), epochs=1, resume_path=tmp_path / "resume.pt")
    kept = (tmp_path / "resume.pt").read_bytes()
    monkeypatch.setattr(training, "training_step", out_of_memory(error))
    with pytest.raises(
        ValueError, match=r"memory is too small for batch_size 8: lower it, or preprocess\.crop"
    ) as caught:
        fit_small(*model_and_head(), noise(), epochs=2, resume_path=tmp_path / "resume.pt")
    assert "llocate" in str(caught.value)
    assert (tmp_path / "resume.pt").read_bytes() == kept  # the last finished epoch


def test_another_fault_of_a_step_is_not_taken_for_memory_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        training, "training_step", out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit_small(*model_and_head(), noise())


# A real end of memory, in a process that may take little more than it has when the model stands.
CONFINED = """
import re, resource, sys
from pathlib import Path
import numpy as np
import torch
from stages.shared import cli
from stages.shared.dataset import TrainSplit, load_train_split
from tests.test_training import model_and_head, train

def main():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 128, 128, 3), dtype=np.uint8)
    split = TrainSplit(pixels, np.full((32, 2), 128, np.int32), np.arange(32) % 2)
    small = TrainSplit(pixels[:, :40, :40], np.full((32, 2), 40, np.int32), np.arange(32) % 2)
    train(*model_and_head(), small, batch_size=8, epochs=1)  # starts every thread
    size = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**25,) * 2)
    train(*model_and_head(crop=128), split, crop=128, batch_size=32, epochs=1)

cli.run(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address spaces are limited as on Linux")
def test_memory_that_really_ends_is_one_line_on_stderr() -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "memory is too small for batch_size 32: lower it, or preprocess.crop" in done.stderr
    assert "Traceback" not in done.stderr
