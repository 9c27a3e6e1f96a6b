"""What must hold on a GPU, and the same on a CPU where that means something: so the tests themselves have run.

Nothing here needs Prefect, DVC or a network: python -m pytest -m gpu tests/test_cuda.py
"""

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.ours import fit_recipe
from benchmarks.workload import MEAN, QUICK, STD, chosen_images, make_model, make_workload
from consumers import predict
from stages.check_parity import __main__ as check_parity
from stages.shared import image_source as source
from stages.shared.dataset import TrainSplit
from stages.shared.distributed import launch
from stages.shared.inference import agreement, fast_predictor, predict_logits
from stages.shared.reproducibility import choose_precision
from stages.shared.sampling import Draws, batches, plan_epoch
from stages.shared.transforms import Transform, rescale, rescaling
from tests.exact_crops import crop_each
from tests.exported_project import copied_project, exported_project

TRANSFORM = Transform(QUICK.resize, QUICK.crop, MEAN, STD)
LEVEL = 1 / 255 / min(STD)
BATCH = 8
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def patient_device(request: pytest.FixtureRequest) -> torch.device:
    """For what takes a CPU half a minute."""
    return torch.device(request.param)


@pytest.fixture(params=[CUDA])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> TrainSplit:
    return make_workload(replace(QUICK, num_drawn=12, num_resident=12), tmp_path_factory.mktemp("photos")).train


def small_network() -> nn.Module:
    """A convolution, batch norm and a head that has ResNet's name: compiled in seconds."""
    torch.manual_seed(0)
    layers = [("conv", nn.Conv2d(3, 8, 3, 2)), ("bn", nn.BatchNorm2d(8)), ("relu", nn.ReLU()), ("pool", nn.AdaptiveAvgPool2d(1)),
              ("flat", nn.Flatten()), ("fc", nn.Linear(8, 2))]  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


def train(split: TrainSplit, device: torch.device, step: str, *, images: int = 2 * BATCH + 3, epochs: int = 2, **more):
    """Loss of each epoch and the final state, in float64: two batches and a tail an epoch."""
    model = more.pop("model", None) or small_network()
    history = fit_recipe(
        model, split, chosen_images(images, len(split)), crop=QUICK.crop, epochs=epochs, batch_size=BATCH, device=device,
        step=step, precision=torch.float64, **more,
    )  # fmt: skip
    return [epoch.train_loss for epoch in history], [value.double().cpu() for value in model.state_dict().values()]


def assert_equal(found, expected, tolerance: float = 1e-9) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    for value, reference in zip(found[1], expected[1], strict=True):
        assert torch.allclose(value, reference, rtol=tolerance, atol=tolerance)


def test_a_compiled_step_is_the_eager_one(split: TrainSplit, patient_device: torch.device) -> None:
    assert_equal(train(split, patient_device, "compile"), train(split, patient_device, "eager"))


def test_a_captured_step_is_the_eager_one(split: TrainSplit, gpu: torch.device) -> None:
    for model in (small_network, lambda: make_model(QUICK.crop)):
        assert_equal(train(split, gpu, "graph", model=model()), train(split, gpu, "eager", model=model()))


def test_a_tail_that_is_seen_often_is_captured_too(
    split: TrainSplit, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.shared.capture.OFTEN", 2)
    assert_equal(train(split, gpu, "graph", epochs=5), train(split, gpu, "eager", epochs=5))


def test_training_gives_the_losses_of_the_cpu(split: TrainSplit, device: torch.device) -> None:
    """From the same plan; crops differ by a level in a few values."""
    found, expected = train(split, device, "auto"), train(split, torch.device("cpu"), "eager")
    assert found[0] == pytest.approx(expected[0], rel=0.01)


def epoch_images(split: TrainSplit, device: torch.device, compiled: bool) -> list[torch.Tensor]:
    plan = plan_epoch(torch.from_numpy(np.array(split.sizes)), torch.arange(len(split)), 0, 1)
    fetch, cut = source.image_source(split.pixels, TRANSFORM, BATCH, torch.float32, device, compiled)
    images = []
    for on_host in batches(plan, BATCH):
        fetch(on_host)
        images.append(cut(on_host.each(lambda part: part.to(device))).cpu())
    return images


@pytest.mark.parametrize("compiled", [True, False])
def test_crops_on_the_device_are_the_exact_ones(split: TrainSplit, device: torch.device, compiled: bool) -> None:
    plan = plan_epoch(torch.from_numpy(np.array(split.sizes)), torch.arange(len(split)), 0, 1)
    pixels, normalise = torch.from_numpy(np.array(split.pixels)), rescaling(MEAN, STD, torch.device("cpu"))
    exact = rescale(crop_each(pixels, plan.index, plan.boxes, plan.flips, QUICK.crop), *normalise, torch.float32)
    off = (torch.cat(epoch_images(split, device, compiled)) - exact).abs()
    assert off.max() < 1.01 * LEVEL
    assert (off > 1e-5).float().mean() < 0.05


def test_streamed_images_are_the_resident_ones(
    split: TrainSplit, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = epoch_images(split, gpu, compiled=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 0))
    streamed = epoch_images(split, gpu, compiled=True)
    assert all(torch.equal(a, b) for a, b in zip(streamed, resident, strict=True))


def test_a_tail_does_not_compile_the_crop_kernel_again(split: TrainSplit, gpu: torch.device) -> None:
    from stages.shared import crop_kernel

    cut = crop_kernel.crop_with_triton(QUICK.crop, *rescaling(MEAN, STD, gpu), torch.bfloat16)
    pixels = torch.from_numpy(np.array(split.pixels)).to(gpu)
    plan = plan_epoch(torch.from_numpy(np.array(split.sizes)), torch.arange(len(split)), 0, 1)
    counts = []
    for start, end in ((0, 8), (8, 11), (3, 6), (11, 12)):
        part = Draws(*(value[start:end].to(gpu) for value in (plan.index, plan.boxes, plan.flips)))
        cut(pixels, part.index, part)
        counts.append(sum(len(cache[0]) for cache in crop_kernel._crop_rows.device_caches.values()))
    assert len(set(counts)) == 1


def test_an_interrupted_training_ends_as_the_undisturbed_one(
    split: TrainSplit, device: torch.device, tmp_path: Path
) -> None:
    undisturbed = train(split, device, "auto", epochs=3)
    train(split, device, "auto", epochs=2, resume_path=tmp_path / "resume")
    assert (tmp_path / "resume").exists()
    resumed = train(split, device, "auto", epochs=3, resume_path=tmp_path / "resume")
    assert_equal(resumed, undisturbed)


def test_float32_logits_are_those_of_float64(device: torch.device) -> None:
    """TF32, which is 1,000 times rougher, is off."""
    model, pixels = make_model(QUICK.crop).eval(), noise(5)
    reference = predict_logits(model, pixels, TRANSFORM, device=torch.device("cpu"), precision=torch.float64)
    assert agreement(predict_logits(model, pixels, TRANSFORM, device=device), reference)[1] < 2e-5


def test_the_fast_evaluation_agrees_with_the_exact_one(device: torch.device) -> None:
    """In batches of 4 with a tail, and with more images than fit at once."""
    model, pixels = make_model(QUICK.crop).eval(), noise(11)
    settings = {"device": device, "precision": choose_precision("auto", device)}
    fast = fast_predictor(model, TRANSFORM, **settings, batch_size=4, compiled=device.type == "cuda")
    exact = predict_logits(model, pixels, TRANSFORM, device=device)
    for some in (pixels, pixels[:3], pixels):
        assert agreement(fast(some), exact[: len(some)])[1] < 3e-2


def noise(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, QUICK.crop, QUICK.crop, 3), dtype=np.uint8)


def test_predict_py_answers_as_on_the_cpu(
    patient_device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise(1)[0]).resize((60, 40)).save(tmp_path / "photo.png")
    answers = []
    for provider in (patient_device.type, "cpu"):
        model = str(exported_project() / "artifacts" / "model.onnx")
        capsys.readouterr()
        assert predict.main([str(tmp_path / "photo.png"), "--json", "--provider", provider, "--model", model]) == 0
        answers.append(json.loads(capsys.readouterr().out)["probabilities"])
    assert answers[0] == pytest.approx(answers[1], abs=1e-3)


def test_parity_holds_with_a_gpu_required(gpu: torch.device, tmp_path: Path) -> None:
    with copied_project(tmp_path):
        check_parity.main("--require-gpu")
        rows = json.loads(Path("artifacts/parity.json").read_text())["rows"]
    assert [row for row in rows if "CUDA" in row["runtime"] and row["verdict"] == "passed"]


def test_more_processes_than_devices_are_refused(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=rf"runtime.num_devices is {count + 1}, but torch finds {count} CUDA device"):
        launch("stages.train", ["finetune"], count + 1, torch.device("cuda"))
