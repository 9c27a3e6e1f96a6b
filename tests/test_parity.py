"""check_parity passes a faithful export, and names the cause of each way in which one can be wrong."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from stages.check_parity import __main__ as check_parity
from stages.check_parity import sessions
from stages.check_parity.files import check_files, metadata_problems, read_whole, transform_problems
from stages.check_parity.images import image_rows
from stages.check_parity.judge import FAILED, NO_DEVICE, PASSED, Claim, Row, distance, judge, within
from stages.check_parity.logits import cpu_rows, cuda_rows
from stages.check_parity.placement import misplaced
from stages.check_parity.subjects import Subjects, find_file, load_subjects
from stages.preprocess.find import printable
from stages.shared import artifacts
from stages.shared.checkpoint import load_checkpoint, save_checkpoint
from stages.shared.files import file_digest, read_json, write_json
from stages.shared.shipped_files import CORE, MODEL
from tests.exported_project import exported_project

LIMITS = {"fp32": 2e-5, "tf32": 5e-3, "fp16": 5e-3, "int8": 2.0}
without_device = pytest.mark.skipif(sessions.count_devices()[0] > 0, reason="there is a CUDA device here")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(exported_project(), tmp_path_factory.mktemp("parity") / "project"))


@pytest.fixture(autouse=True)
def _inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


@pytest.fixture(scope="module")
def subjects(project: Path) -> Subjects:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        return load_subjects("finetune", artifacts.SOURCE_DATASET / "images")


@pytest.fixture
def models(subjects: Subjects) -> dict[str, ModelProto]:
    return check_files(artifacts.ROOT, subjects)[1]


@pytest.fixture
def damaged(project: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Replace a file for one test, and tell export.json its new digest, so that other checks have to find out."""
    kept: dict[Path, bytes] = {}

    def damage(name: str, content: bytes) -> None:
        sidecar = artifacts.EXPORT / "export.json"
        for path in (artifacts.ROOT / name, sidecar):
            kept.setdefault(path, path.read_bytes())
        (artifacts.ROOT / name).write_bytes(content)
        values = read_json(sidecar)
        values["files"][name]["sha256"] = file_digest(artifacts.ROOT / name)
        write_json(sidecar, values)

    yield damage
    for path, content in kept.items():
        path.write_bytes(content)


def failures(rows: list[Row]) -> str:
    return "\n".join(f"{row.claim.name}: {row.reason}" for row in rows if row.verdict == FAILED)


def test_faithful_export_passes_and_the_table_is_written(project: Path) -> None:
    check_parity.main()
    table = read_json(artifacts.PARITY)
    assert table["num_failed"] == 0
    assert table["num_passed"] >= 20
    assert table["model_digest"] == file_digest(artifacts.MODEL)
    assert {"runtime", "precision", "subject", "check", "verdict", "reason", "max_error", "limit"} <= set(
        table["rows"][0]
    )
    latency = [row for row in table["rows"] if row["batch"] and row["verdict"] == PASSED]
    assert all(row["p50_ms"] <= row["p99_ms"] and row["images_per_second"] > 0 for row in latency)
    assert {(row["runtime"], row["precision"]) for row in latency} >= {
        ("torch CPU", "fp32"),
        ("ONNX Runtime CPU", "fp32"),
        ("ONNX Runtime CPU", "int8"),
    }
    assert (
        "| ONNX Runtime CPU | fp32 | core.onnx | agrees with float64 | passed |"
        in artifacts.PARITY.with_suffix(".md").read_text()
    )


@without_device
def test_cuda_rows_say_that_there_is_no_device_and_fail_when_one_is_required(
    subjects: Subjects, models: dict[str, ModelProto]
) -> None:
    rows = cuda_rows(subjects, models, LIMITS)
    assert [row.verdict for row in rows] == [NO_DEVICE] * 7
    required = [check_parity.require_gpu(row) for row in rows]
    assert {row.verdict for row in required} == {FAILED}
    assert "no CUDA device, and --require-gpu was given" in failures(required)


def test_require_gpu_leaves_other_rows_alone() -> None:
    row = Row(Claim("ONNX Runtime CPU", "int8", "model.int8.onnx", "agrees with float64"), "not run: not shipped")
    assert check_parity.require_gpu(row) == row


def test_what_was_not_run_is_one_line_with_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    claim = Claim("ONNX Runtime CPU", "fp32", "core.onnx", "agrees with float64")
    lacking = [Row(claim, verdict) for verdict in (NO_DEVICE, NO_DEVICE, "not run: not shipped")]
    check_parity.report([Row(claim, PASSED), *lacking])
    assert capsys.readouterr().out.splitlines() == [
        "passed  ONNX Runtime CPU, fp32, core.onnx: agrees with float64",
        "not run: 3 of 4 rows: no CUDA device (2); not shipped (1)",
    ]


def test_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown option --gpu; known are --require-gpu"):
        check_parity.main("--gpu")


def test_table_is_written_before_the_stage_fails(damaged: Callable[[str, bytes], None]) -> None:
    artifacts.PARITY.unlink(missing_ok=True)
    damaged("model.onnx", artifacts.MODEL.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.onnx.*not a whole ONNX file"):
        check_parity.main()
    assert read_json(artifacts.PARITY)["num_failed"] >= 3


# the verdict


def test_error_is_relative_to_the_largest_logit_and_flips_count() -> None:
    reference = np.array([[10.0, -10.0], [0.01, 0.0]])
    found = distance(reference + np.array([[0.0, 0.0], [0.0, 0.02]]), reference)
    assert found.error == pytest.approx(0.002)
    assert (found.flips, found.flip_margin) == (1, pytest.approx(0.001))


def test_flip_is_allowed_inside_the_numerical_margin_only() -> None:
    reference = np.array([[10.0, 0.0], [0.01, 0.0]])
    flipped = distance(np.array([[10.0, 0.0], [0.0, 0.01]]), reference)
    assert within(flipped, 0.001)
    assert not within(flipped, 0.0004)


@pytest.mark.parametrize("logits", [np.full((2, 2), np.nan), np.zeros((1, 2)), np.full((2, 2), np.inf)])
def test_values_that_are_not_finite_and_missing_rows_fail(logits: np.ndarray) -> None:
    assert not within(distance(logits, np.eye(2)), 0.5)


@pytest.mark.parametrize(("torch_error", "guilty"), [(1e-6, "core.onnx are at fault"), (0.1, "suspect the checkpoint")])
def test_failure_names_the_guilty_side(torch_error: float, guilty: str) -> None:
    claim = Claim("ONNX Runtime CPU", "fp32", "core.onnx", "agrees with float64")
    row = judge(claim, distance(np.eye(2), 2 * np.eye(2)), 2e-5, torch_error=torch_error, torch_limit=2e-5)
    assert row.verdict == FAILED
    assert guilty in row.reason


# the weights


def test_swapped_weights_fail_and_the_file_is_named(subjects: Subjects, models: dict[str, ModelProto]) -> None:
    kernels = [tensor for tensor in models[CORE.path].graph.initializer if len(tensor.dims) == 4]
    kernels[1].raw_data = numpy_helper.to_array(kernels[1])[::-1].tobytes()
    rows = cpu_rows(subjects, {CORE.path: models[CORE.path]}, LIMITS)
    assert "core.onnx: agrees with float64: error" in failures(rows)
    assert "the weights in core.onnx are at fault" in failures(rows)


def test_file_of_another_checkpoint_fails(subjects: Subjects, models: dict[str, ModelProto]) -> None:
    problems = metadata_problems(models[MODEL.path], subjects.facts, "0" * 64)
    assert any("weights_digest" in problem and "exported from another checkpoint" in problem for problem in problems)


def test_reference_of_other_weights_is_refused(project: Path) -> None:
    path = artifacts.train_dir("finetune") / "checkpoint.safetensors"
    content = path.read_bytes()
    model, facts = load_checkpoint(path)
    next(model.parameters()).data += 1
    try:
        save_checkpoint(path, model, facts)
        with pytest.raises(ValueError, match=r"reference\.safetensors: made from other weights .* run export again"):
            check_parity.main()
    finally:
        path.write_bytes(content)


def test_class_names_in_another_order_fail(subjects: Subjects, models: dict[str, ModelProto]) -> None:
    for item in models[MODEL.path].metadata_props:
        if item.key == "class_names":
            item.value = '["not-hotdog", "hotdog"]'
    (problem,) = metadata_problems(models[MODEL.path], subjects.facts, subjects.weights_digest)
    assert "class names are ['not-hotdog', 'hotdog'], the checkpoint's are ['hotdog', 'not-hotdog']" in problem


# the test transform


def change_constant(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], None]:
    def changed(model: ModelProto) -> None:
        (tensor,) = [item for item in model.graph.initializer if item.name == name]
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), name))

    return changed


@pytest.mark.parametrize(
    ("change", "cause", "numbers"),
    [
        (change_constant("resize_side", lambda side: side + 8), "resize to [80]", "resizes as preprocess does"),
        (change_constant("odd_rows", lambda odd: odd + 2), "odd_rows of the crop", "resizes as preprocess does"),
        (change_constant("red_green_blue", np.flip), "red and blue swapped", "resizes as preprocess does"),
        (
            change_constant("normalize_shift", lambda shift: shift / 2),
            "mean in the graph is",
            "predict.py agrees with the PIL pipeline",
        ),
        (
            change_constant("normalize_scale", lambda scale: 2 * scale),
            "std in the graph is",
            "predict.py agrees with the PIL pipeline",
        ),
    ],
)
def test_wrong_transform_fails_by_its_numbers_and_the_cause_is_named(
    subjects: Subjects,
    damaged: Callable[[str, bytes], None],
    change: Callable[[ModelProto], None],
    cause: str,
    numbers: str,
) -> None:
    model = onnx.load(artifacts.MODEL)
    change(model)
    assert cause in "; ".join(transform_problems(model, subjects.facts.transform, "image"))
    damaged(MODEL.path, model.SerializeToString())
    assert numbers in failures(image_rows(artifacts.ROOT, subjects, {MODEL.path: model}, 0.002))


# the file


@pytest.mark.parametrize(
    ("digest", "message"), [(True, "is truncated, damaged or replaced"), (False, "not a whole ONNX file")]
)
def test_truncated_file_fails(tmp_path: Path, digest: bool, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(artifacts.MODEL.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=message):
        read_whole(path, file_digest(artifacts.MODEL) if digest else None)


def test_file_with_tensors_elsewhere_fails(tmp_path: Path) -> None:
    onnx.save(onnx.load(artifacts.MODEL), tmp_path / "model.onnx", save_as_external_data=True, location="w.bin")
    with pytest.raises(ValueError, match="only self-contained models are accepted"):
        read_whole(tmp_path / "model.onnx", None)


def test_newer_opset_would_leave_nodes_on_the_cpu(models: dict[str, ModelProto]) -> None:
    models[CORE.path].opset_import[0].version = 22
    (problem,) = misplaced(models[CORE.path])
    assert "opset 22 is newer than 21: MaxPool and others fall back to the CPU" in problem


def test_shape_arithmetic_and_unknown_operators_would_leave_nodes_on_the_cpu(models: dict[str, ModelProto]) -> None:
    make = onnx.helper.make_node
    models[CORE.path].graph.node.extend(
        [
            make("Shape", ["normalized"], ["shape"]),
            make("Squeeze", ["shape"], ["batch"]),
            make("NonMaxSuppression", [], ["x"]),
        ]
    )
    problems = misplaced(models[CORE.path])
    assert "Squeeze of a shape: ONNX Runtime computes shapes on the CPU" in problems
    assert "NonMaxSuppression: no CUDA kernel is known for it" in problems


# CUDA


def test_missing_cuda_library_fails_by_its_name(
    subjects: Subjects, models: dict[str, ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Path) -> None:
        raise OSError("libcurand.so.10: cannot open shared object file")

    monkeypatch.setattr(sessions, "count_devices", lambda: (1, ""))
    monkeypatch.setattr(sessions, "PROVIDERS_DIR", Path("providers"))
    Path("providers").mkdir(exist_ok=True)
    Path("providers/libonnxruntime_providers_cuda.so").touch()
    monkeypatch.setattr(sessions, "load_library", missing)
    rows = cuda_rows(subjects, models, LIMITS)
    assert {row.verdict for row in rows} == {FAILED}
    assert "provider does not load: libcurand.so.10: cannot open shared object file" in failures(rows)


def test_onnxruntime_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "PROVIDERS_DIR", Path("no-such-folder"))
    assert "was built without the cuda provider; install onnxruntime-gpu[cuda,cudnn]" in sessions.provider_error("cuda")


@without_device
def test_parity_fails_when_cuda_falls_back(
    subjects: Subjects, models: dict[str, ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "count_devices", lambda: (1, ""))
    monkeypatch.setattr(sessions, "provider_error", lambda _: "")
    rows = cuda_rows(subjects, models, LIMITS)
    assert {row.verdict for row in rows} == {FAILED}
    assert len(rows) == 7


def fake_session(provider: str = sessions.CUDA, nodes: str = sessions.CUDA, use_tf32: str = "0") -> Any:
    graph = SimpleNamespace(ep_name=nodes, get_nodes=lambda: [1])
    return SimpleNamespace(
        get_providers=lambda: [provider],
        get_provider_graph_assignment_info=lambda: [graph],
        get_provider_options=lambda: {sessions.CUDA: {"use_tf32": use_tf32}},
    )


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (fake_session(use_tf32="1"), "use_tf32 is 1, expected 0: TF32 was left on"),
        (fake_session(nodes=sessions.CPU), "nodes left CUDA: {'CPUExecutionProvider': 1}"),
        (fake_session(provider=sessions.CPU), "fell back to CPUExecutionProvider: CUDA did not run"),
    ],
)
def test_session_that_is_not_as_asked_is_refused(session: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        sessions.check_cuda(session, tf32=False)


def test_kernels_on_another_provider_are_seen_in_the_profile(tmp_path: Path) -> None:
    events = [{"cat": "Node", "name": "conv_kernel_time", "args": {"provider": sessions.CPU}}]
    write_json(tmp_path / "profile.json", events)
    session = fake_session()
    session.get_session_options = lambda: SimpleNamespace(enable_profiling=True)
    session.end_profiling = lambda: str(tmp_path / "profile.json")
    with pytest.raises(
        RuntimeError, match=r"kernels on {'CPUExecutionProvider': 1}, expected CUDAExecutionProvider alone"
    ):
        sessions.end_proof(session)


@pytest.mark.gpu
@pytest.mark.skipif(not sessions.count_devices()[0], reason="no CUDA device")
def test_cuda_rows_pass_with_every_proof(subjects: Subjects, models: dict[str, ModelProto]) -> None:
    rows = cuda_rows(subjects, models, LIMITS)
    assert not failures(rows)
    first = next(row for row in rows if row.claim.precision == "fp32" and row.verdict == PASSED)
    assert set(first.details["nodes"]) == set(first.details["kernels"]) == {sessions.CUDA}


def test_a_file_whose_name_is_no_utf_8_is_found_again(tmp_path: Path) -> None:
    name = printable(os.fsdecode(b"caf\xe9 \\x.png"))
    (tmp_path / os.fsdecode(b"caf\xe9 \\x.png")).write_bytes(b"here")
    assert find_file(tmp_path, name).read_bytes() == b"here"
