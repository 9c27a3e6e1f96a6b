"""The exported files: what is inside, what is not, and that they come out the same every time."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from stages.check_parity.placement import misplaced
from stages.export.core import export_core
from stages.export.deploy import chain, deployable, deployable_on_crops
from stages.export.heatmap import heatmap_graph
from stages.export.variants import Demands, Judged, eight_bits, half_precision, ship_variants, speedup, split_evenly
from stages.report.card import model_card
from stages.shared.checkpoint import Facts
from stages.shared.contrasts import WithContrasts
from stages.shared.dataset import load_test_split
from stages.shared.files import file_digest, read_json, write_json, write_text
from stages.shared.model import Mirrored, build_model
from stages.shared.shipped_files import FILES, HEATMAP, LOGITS
from stages.shared.transforms import Transform, network_input
from tests.exported_project import CLASSES, CROP, MEAN, RESIZE, ROOT, STD, exported_project

EXPORT = Path("artifacts/export")


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(exported_project())
    return exported_project()


@pytest.fixture
def session(project: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession("artifacts/model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 37, 91, 3), (3, 200, 80, 4)])
def test_model_takes_any_size_and_any_batch(session: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> None:
    (probabilities,) = session.run(["probabilities"], {"image": np.full(shape, 90, np.uint8)})
    assert probabilities.shape == (shape[0], 2)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


def test_model_says_what_it_takes_and_gives(session: onnxruntime.InferenceSession) -> None:
    (image,), (output, familiarity) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", "height", "width", "channels"])
    assert (output.name, output.type, output.shape) == ("probabilities", "tensor(float)", ["batch", 2])
    assert (familiarity.name, familiarity.type, familiarity.shape) == ("familiarity", "tensor(float)", ["batch"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list(CLASSES)
    assert set(metadata) >= {
        "weights_digest",
        "data_digest",
        "input",
        "output",
        "test_transform",
        "features",
        "runtimes",
    }
    assert set(json.loads(metadata["thresholds"])) == {"familiarity"}


def test_the_network_alone_says_what_it_takes_and_gives(project: Path) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(EXPORT / "core.onnx").metadata_props}
    assert metadata["input"].startswith(f"normalized float32 [batch, 3, {CROP}, {CROP}]")
    assert metadata["output"].startswith("logits float32 [batch, classes]")


def test_opaque_alpha_changes_nothing_and_full_transparency_is_white(session: onnxruntime.InferenceSession) -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 50, 70, 3), dtype=np.uint8)
    opaque = np.concatenate([image, np.full_like(image[..., :1], 255)], axis=3)
    clear = np.concatenate([image, np.zeros_like(image[..., :1])], axis=3)
    plain, through_alpha, nothing, white = (
        session.run(["probabilities"], {"image": each})[0] for each in (image, opaque, clear, np.full_like(image, 255))
    )
    np.testing.assert_array_equal(through_alpha, plain)
    np.testing.assert_array_equal(nothing, white)


def test_every_value_under_every_alpha_is_laid_on_white_exactly(project: Path) -> None:
    model = onnx.load("artifacts/model.onnx")
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("rgb", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    image = np.stack([value, value, value, alpha], axis=2).astype(np.uint8)
    (on_white,) = session.run(None, {"image": image[None]})
    nearest = (2 * (value * alpha + 255 * (255 - alpha)) + 255) // 510
    np.testing.assert_array_equal(on_white[0, 0], nearest)


def test_images_of_a_batch_do_not_touch_each_other(session: onnxruntime.InferenceSession) -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 60, 40, 3), dtype=np.uint8)
    for name in ("probabilities", "familiarity"):
        (together,) = session.run([name], {"image": images})
        alone = np.concatenate([session.run([name], {"image": image[None]})[0] for image in images])
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_mirrored_network_is_exported_with_its_mirror() -> None:
    torch.manual_seed(0)
    model = Mirrored(build_model("resnet18", 2, 32)).eval()
    core = export_core(model, 32, 18)
    session = onnxruntime.InferenceSession(core.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 32, 32)
    logits, features = session.run(["logits", "features"], {"normalized": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-5)
    assert features.shape == (3, 512)


def test_a_mirrored_networks_heatmap_is_of_the_image_itself() -> None:
    torch.manual_seed(0)
    mirrored = Mirrored(build_model("resnet18", 2, 64)).eval()
    images, found = torch.randn(3, 3, 64, 64).numpy(), []
    for model in (mirrored, mirrored.network):
        core = export_core(model, 64, 18)
        whole = chain([core, heatmap_graph(core, 18)], [HEATMAP, LOGITS])
        session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"normalized": images}))
    (heatmap, logits), (expected, own) = found
    np.testing.assert_array_equal(logits.argmax(1), own.argmax(1))  # else the maps would be of different classes
    np.testing.assert_allclose(heatmap, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [file.path for file in FILES])
def test_file_is_clean_and_of_the_chosen_opset(project: Path, name: str) -> None:
    path = project / "artifacts" / name
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    assert model.ir_version == 8  # the oldest that has opset 18
    content = path.read_bytes()
    for trace in (str(project), str(ROOT), sys.prefix, "site-packages", "/tmp/"):
        assert trace.encode() not in content


@pytest.mark.parametrize("name", [file.path for file in FILES if "cuda" in file.devices])
def test_every_node_can_be_placed_on_cuda(project: Path, name: str) -> None:
    assert misplaced(onnx.load(project / "artifacts" / name)) == []


def test_sidecar_describes_the_files(project: Path) -> None:
    sidecar = read_json(EXPORT / "export.json")
    for name, facts in sidecar["files"].items():
        assert file_digest(Path("artifacts") / name) == facts["sha256"]
    assert sidecar["params"]["export"]["opset"] == 18
    assert set(sidecar["params"]["train"]) == {"finetune"}
    assert {"torch", "onnx", "onnxruntime", "python"} <= set(sidecar["versions"])
    assert set(sidecar["git"]) == {"commit", "modified"}


def test_triton_repository_holds_the_same_model(project: Path) -> None:
    folder = EXPORT / "triton" / "classifier"
    config = (folder / "config.pbtxt").read_text()
    assert "TYPE_UINT8" in config
    assert "dims: [ -1, -1, -1 ]" in config
    assert "dynamic_batching" in config
    assert (folder / "labels.txt").read_text().split() == list(CLASSES)
    assert file_digest(folder / "1" / "model.onnx") == file_digest(Path("artifacts/model.onnx"))


def small_export() -> list[str]:
    """Digests of all kinds of file that the stage writes, of one small network."""
    torch.manual_seed(0)
    core = export_core(build_model("squeezenet1_1", 2, CROP), CROP, 18)
    transform = Transform(RESIZE, CROP, MEAN, STD)
    crops = np.random.default_rng(0).integers(0, 256, (4, CROP, CROP, 3), dtype=np.uint8)
    models = [
        core,
        deployable(core, [], transform),
        deployable_on_crops(core, [], transform),
        half_precision(core, crops),
        eight_bits(core, network_input(crops, transform), reduce_range=True),
    ]
    return [hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest() for model in models]


@pytest.mark.slow
def test_two_processes_write_the_same_bytes() -> None:
    program = "from tests.test_export import small_export; print(*small_export())"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.splitlines()[-1].split() == small_export()


def check_core(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, 3, 64).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # ViT's head starts at zero
            if not parameter.any():
                parameter.normal_(std=0.1)
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        reference = model.double()(images.double()).numpy()
    core = export_core(model, 64, 18)
    assert misplaced(core) == []
    session = onnxruntime.InferenceSession(core.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        (logits,) = session.run(["logits"], {"normalized": images[:batch].numpy()})
        assert np.abs(logits - reference[:batch]).max() / np.abs(reference).max() < 2e-5
    (contrasts,) = session.run(["map_contrasts"], {"normalized": images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(contrasts, WithContrasts(model)(images.double())[1].numpy(), atol=1e-5)


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_architecture_exports_exactly_and_stays_on_cuda(architecture: str) -> None:
    check_core(architecture)


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        "resnet50",
        "shufflenet_v2_x0_5",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "efficientnet_b0",
        "convnext_tiny",
        "vit_b_16",
    ],
)
def test_larger_architecture_exports_exactly_and_stays_on_cuda(architecture: str) -> None:
    check_core(architecture)


@pytest.mark.parametrize(
    ("demands", "reason"),
    [
        (Demands(0.3, {"fp16": 1e-9, "int8": 1e-9}, 0), "its logits are off by"),
        (Demands(-1.0, {"fp16": 1.0, "int8": 1.0}, 0), "top-1 drops by 0.0000, more than export.max_accuracy_drop"),
    ],
)
def test_variant_beyond_a_limit_is_recorded_and_not_shipped(
    project: Path, tmp_path: Path, demands: Demands, reason: str
) -> None:
    core, judged = onnx.load(EXPORT / "core.onnx"), judged_images()
    half, _ = ship_variants(
        tmp_path, core, lambda reduced: reduced, {}, {}, calibration=judged.images, judged=judged, demands=demands
    )
    assert not half["shipped"]
    assert half["reason"].startswith(reason)
    assert half["accuracy_drop"] == 0
    assert not (tmp_path / "export" / "core.fp16.onnx").exists()


def judged_images() -> Judged:
    """The project's test crops, which serve as images here, and what its core says of them."""
    test = load_test_split(Path("artifacts/preprocess/test"))
    images = network_input(test.pixels, Transform(RESIZE, CROP, MEAN, STD))
    session = onnxruntime.InferenceSession(str(EXPORT / "core.onnx"), providers=["CPUExecutionProvider"])
    (reference,) = session.run(["logits"], {"normalized": images})
    return Judged(images, test.labels, reference.astype(np.float64))


def test_int8_is_the_way_of_the_smaller_error_and_has_unsigned_activations(project: Path) -> None:
    (row,) = [row for row in read_json(EXPORT / "export.json")["variants"] if row["file"] == "model.int8.onnx"]
    assert row["way"] in ("weights of 8 bits", "weights of 7 bits")
    core, images = onnx.load(EXPORT / "core.onnx"), judged_images().images
    for reduce_range, largest in ((False, 127), (True, 64)):
        model = eight_bits(core, images, reduce_range=reduce_range)
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        kernels = [value for value in tensors.values() if value.dtype == np.int8 and value.ndim == 4]
        assert max(int(np.abs(value.astype(int)).max()) for value in kernels) <= largest
        zero_points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert {tensors[name].dtype for name in zero_points} == {np.dtype(np.uint8)}


def test_variant_that_is_not_faster_is_not_shipped(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.export.variants.speedup", lambda *_: 1.1)
    judged, demands = judged_images(), Demands(1.0, {"fp16": 10.0, "int8": 10.0}, 1.2)
    core = onnx.load(EXPORT / "core.onnx")
    half, int8 = ship_variants(
        tmp_path, core, lambda reduced: reduced, {}, {}, calibration=judged.images, judged=judged, demands=demands
    )
    assert half["shipped"]  # made for CUDA, whose speed a machine without it cannot tell
    assert int8["reason"] == "it is 1.10 times as fast as float32 here, export.min_speedup is 1.2"
    assert not (tmp_path / "export" / "model.int8.onnx").exists()


def test_a_network_is_about_as_fast_as_itself(project: Path) -> None:
    core = onnx.load(EXPORT / "core.onnx")
    assert speedup(core, core, judged_images().images) > 0


@pytest.mark.parametrize("num_images", [2, 3, 24, 384, 5000])
def test_no_image_is_judged_that_was_calibrated_on_and_both_are_spread_over_all(num_images: int) -> None:
    calibration, judged = split_evenly(num_images, 128, 256)
    assert len(calibration) > 0
    assert len(judged) > 0
    assert not set(calibration) & set(judged)
    assert len(calibration) + len(judged) == min(num_images, 384)
    assert {calibration[0], judged[-1]} == {0, num_images - 1} or num_images % 3
    if num_images == 5000:
        assert (len(calibration), len(judged)) == (128, 256)


def test_model_card_tells_accuracy_mistakes_and_licence(tmp_path: Path) -> None:
    interval = {"test_accuracy": 0.75, "test_accuracy_low": 0.5, "test_accuracy_high": 0.9}
    write_json(tmp_path / "metrics.json", {"num_images": 4, **interval, "roc_auc": None})
    header = "path,label,prediction,p_hotdog,p_not-hotdog,correct"
    rows = ["a|b.png,hotdog,not-hotdog,0.1,0.9,0", "c.png,hotdog,hotdog,0.8,0.2,1"]
    write_text(tmp_path / "predictions.csv", "\n".join([header, *rows]) + "\n")
    facts = asdict(Facts("resnet18", CLASSES, Transform(RESIZE, CROP, MEAN, STD), "finetune", 0, None, "d" * 64))
    weights = {"init": "pretrained", "source": {"kind": "torchvision", "source": "IMAGENET1K_V1"}}
    variants = [{"file": "model.int8.onnx", "accuracy_drop": 0.25, "error": 0.125, "shipped": False, "reason": "slow"}]
    data = {"source": {"source": "hotdog.zip"}}
    sidecar = {"facts": facts, "data": data, "weights": weights, "variants": variants}
    sidecar |= {
        "metadata": {"thresholds": '{"familiarity": 0.02, "probability": {"hotdog": 0.9, "not-hotdog": 2.0}}'},
        "machine": "cpu (x)",
    }
    card = model_card(
        sidecar, tmp_path, None, num_train=8, num_test=4, fixes={"drop": 3, "relabel": 0, "not_found": ["a", "b"]}
    )
    assert (
        "| `export/model.int8.onnx` | as model.onnx, its network in 8 bits | cpu | 0.2500 | 0.1250 | no: slow |" in card
    )
    assert "| accuracy | 0.750 | 0.500 to 0.900 |" in card
    assert "Fixed by a person's list, `fixes.yaml`, before anything was computed: 3 drop, 2 not found." in card
    assert "below 0.020 the answer should not be used" in card
    assert "from this probability on: hotdog 0.900, not-hotdog never." in card
    assert "the chance that a threshold was set and does not keep this is at most 5 %" in card
    assert "ROC-AUC" not in card
    assert "1 of 2 test images are classified wrongly" in card
    assert "| `a\\|b.png` | hotdog | not-hotdog | 0.900 |" in card
    assert "OpenVINO needs `INFERENCE_PRECISION_HINT=f32`" in card  # also where nothing was checked here
    assert "nothing; run check_parity" in card
    assert "IMAGENET1K_V1" in card
    assert "BSD-3-Clause" in card
