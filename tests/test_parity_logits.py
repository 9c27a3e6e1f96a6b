"""Rows on numbers: every runtime's logits against float64, batch 1 against 32, twice."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from stages.check_parity import logits, sessions
from stages.check_parity.judge import (
    FAILED,
    NO_DEVICE,
    PASSED,
    Claim,
    Row,
)
from stages.check_parity.logits import core_of, cpu_rows, cuda_rows, torch_rows
from stages.shared.shipped_files import CORE, HALF, INT8, ShippedFile
from stages.shared.transforms import Transform
from tests.parity_models import CLAIM, LIMITS, core_model, subjects, whole_model


def by_check(rows: list[Row]) -> dict[str, Row]:
    assert len({row.claim for row in rows}) == len(rows)
    return {row.claim.check: row for row in rows}


class FakeSession:
    """Answers as `Pooled` would, plus `drift` the second time through all images, plus `alone` for a batch of one."""

    def __init__(self, drift: float = 0.0, alone: float = 0.0) -> None:
        self.drift, self.alone = drift, alone
        self.batches: list[int] = []

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="normalized")]

    def get_session_options(self) -> Any:
        return SimpleNamespace(enable_profiling=False)

    def run(self, _: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        images = feeds["normalized"]
        self.batches.append(len(images))
        is_second_time = len(self.batches) in (3, 4)  # 40 images are two batches
        off = self.alone * (len(images) == 1) + self.drift * is_second_time
        return [images.mean((2, 3))[:, :2] * np.float32([2, 1]) + np.float32([off, 0])]


def opened_as(monkeypatch: pytest.MonkeyPatch, session: FakeSession) -> dict[str, Row]:
    monkeypatch.setattr(sessions, "cpu_session", lambda _: session)
    return by_check(
        [row for row in cpu_rows(subjects(), {CORE.path: core_model()}, LIMITS) if row.claim.subject == "core.onnx"]
    )


def test_faithful_files_pass_on_the_cpu_in_each_precision() -> None:
    models = {CORE.path: core_model(), HALF.path: core_model((2.25, 1.0)), INT8.path: core_model((2.5, 1.0))}
    rows = cpu_rows(subjects(), models, LIMITS)
    assert {row.verdict for row in rows} == {PASSED}, [row.reason for row in rows]
    assert [row.claim.name for row in rows] == [
        f"ONNX Runtime CPU, {subject}: {check}"
        for subject in ("fp32, core.onnx", "fp16, core.fp16.onnx", "int8, model.int8.onnx")
        for check in ("agrees with float64", "batch 1 agrees with batch 32", "runs the same twice")
    ]
    assert [row.limit for row in rows] == [0.125] * 3 + [0.375] * 3 + [0.5] * 3
    assert [row.max_error for row in rows[::3]] == pytest.approx([0.0, 0.125, 0.25], abs=1e-6)
    assert [row.max_error for row in rows if row.claim.check != "agrees with float64"] == pytest.approx(
        [0.0] * 6, abs=1e-6
    )


@pytest.mark.parametrize(
    ("file", "precision", "factor"), [(CORE, "fp32", 1.2), (HALF, "fp16", 1.4), (INT8, "int8", 1.6)]
)
def test_file_beyond_the_limit_of_its_precision_fails(file: ShippedFile, precision: str, factor: float) -> None:
    rows = cpu_rows(subjects(), {file.path: core_model((2 * factor, factor))}, LIMITS)
    (row,) = [
        row for row in rows if row.claim == Claim("ONNX Runtime CPU", precision, file.name, "agrees with float64")
    ]
    assert row.verdict == FAILED
    assert row.max_error == pytest.approx(factor - 1, abs=1e-6)
    assert "torch float32 is not (" in row.reason


def test_wrong_reference_is_told_by_torchs_own_float32() -> None:
    """The stored float32 logits disagree with the stored float64 ones as well."""
    off = subjects(float64=subjects().float64 * 2)
    rows = by_check(
        [row for row in cpu_rows(off, {CORE.path: core_model()}, LIMITS) if row.claim.subject == "core.onnx"]
    )
    assert rows["agrees with float64"].verdict == FAILED
    assert rows["agrees with float64"].max_error == pytest.approx(0.5, abs=1e-6)
    assert (
        "torch float32 is off too (0.5): suspect the checkpoint or the reference" in rows["agrees with float64"].reason
    )


def test_each_file_is_run_in_32s_twice_and_32_images_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession()
    rows = opened_as(monkeypatch, session)
    assert session.batches == [32, 8, 32, 8] + [1] * 32
    assert {row.verdict for row in rows.values()} == {PASSED}
    assert rows["runs the same twice"] == Row(
        Claim("ONNX Runtime CPU", "fp32", "core.onnx", "runs the same twice"),
        PASSED,
        "bitwise equal",
        0.0,
        LIMITS["fp32"],
        {"bitwise_equal": True},
    )


def test_answer_that_depends_on_the_batch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = opened_as(monkeypatch, FakeSession(alone=9.0))
    assert {check: row.verdict for check, row in rows.items()} == {
        "agrees with float64": PASSED,
        "batch 1 agrees with batch 32": FAILED,
        "runs the same twice": PASSED,
    }
    assert rows["batch 1 agrees with batch 32"].limit == LIMITS["fp32"]


@pytest.mark.parametrize(("drift", "verdict"), [(0.01, PASSED), (9.0, FAILED)])
def test_second_run_need_not_be_bitwise_equal_but_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, drift: float, verdict: str
) -> None:
    row = opened_as(monkeypatch, FakeSession(drift=drift))["runs the same twice"]
    scale = np.abs(subjects().float64).max()
    assert (row.verdict, row.limit, row.details) == (verdict, LIMITS["fp32"], {"bitwise_equal": False})
    assert row.max_error == pytest.approx(drift / scale, rel=1e-4)
    assert row.reason == f"not bitwise equal: {row.max_error:.2g} apart"


def test_second_run_may_be_as_far_as_the_limit_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = opened_as(monkeypatch, FakeSession(drift=0.01))["runs the same twice"].max_error
    monkeypatch.setitem(LIMITS, "fp32", measured)
    assert opened_as(monkeypatch, FakeSession(drift=0.01))["runs the same twice"].verdict == PASSED


def test_runtime_that_cannot_open_a_file_fails_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes) -> FakeSession:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(sessions, "cpu_session", refuse)
    rows = cpu_rows(subjects(), {CORE.path: core_model()}, LIMITS)
    assert rows[0] == Row(CLAIM, FAILED, "RuntimeError: no such operator")


def test_missing_files_are_unreadable_unless_export_left_them_out() -> None:
    rows = cpu_rows(subjects(not_shipped={"model.int8.onnx": "loses too much"}), {}, LIMITS)
    assert [(row.claim.subject, row.verdict, row.reason) for row in rows] == [
        ("core.onnx", FAILED, "core.onnx cannot be read (see its file row)"),
        ("core.fp16.onnx", FAILED, "core.fp16.onnx cannot be read (see its file row)"),
        ("model.int8.onnx", "not run: not shipped", "loses too much"),
    ]


CUDA_CLAIMS = [
    *(
        Claim("ONNX Runtime CUDA", precision, subject, "agrees with float64", mode=mode)
        for mode in ("", "channels last")
        for precision, subject in (("fp32", "core.onnx"), ("fp16", "core.fp16.onnx"), ("tf32", "core.onnx"))
    ),
    Claim("ONNX Runtime TensorRT", "tf32", "core.onnx", "agrees with float64"),
]


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, errors: dict[str, str] | None = None) -> list[tuple[Any, ...]]:
    """A device whose sessions answer right; what was opened, in order, with tf32 or without, channels last or not."""
    opened: list[tuple[Any, ...]] = []

    def cuda_session(core: bytes, *, tf32: bool, channels_last: bool, profile: Path) -> FakeSession:
        assert profile.name == "profile"
        assert profile.parent.is_dir()
        assert onnx.load_from_string(core).graph.input[0].name == "normalized"
        opened.append(("cuda", tf32, channels_last))
        return FakeSession()

    def tensorrt_session(core: bytes) -> FakeSession:
        assert onnx.load_from_string(core).graph.input[0].name == "normalized"
        opened.append(("tensorrt",))
        return FakeSession()

    monkeypatch.setattr(sessions, "count_devices", lambda: (1, ""))
    monkeypatch.setattr(sessions, "provider_error", lambda name: (errors or {}).get(name, ""))
    monkeypatch.setattr(sessions, "cuda_session", cuda_session)
    monkeypatch.setattr(sessions, "tensorrt_session", tensorrt_session)
    return opened


def test_without_a_device_every_cuda_claim_is_not_run_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "count_devices", lambda: (0, "no CUDA driver"))
    assert cuda_rows(subjects(), {CORE.path: core_model()}, LIMITS) == [
        Row(claim, NO_DEVICE, "no CUDA driver") for claim in CUDA_CLAIMS
    ]


def test_device_without_its_provider_fails_every_cuda_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pretend_cuda(monkeypatch, {"cuda": "libcurand.so.10"})
    reason = (
        "there is a CUDA device, but ONNX Runtime's CUDA provider does not load: libcurand.so.10; "
        "install onnxruntime-gpu[cuda,cudnn]"
    )
    assert cuda_rows(subjects(), {CORE.path: core_model()}, LIMITS) == [
        Row(claim, FAILED, reason) for claim in CUDA_CLAIMS
    ]
    assert not opened


def test_each_cuda_precision_is_opened_as_such_and_judged_by_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pretend_cuda(monkeypatch)
    rows = cuda_rows(subjects(), {CORE.path: core_model(), HALF.path: core_model()}, LIMITS)
    assert opened == [
        *(("cuda", tf32, channels_last) for channels_last in (False, True) for tf32 in (False, False, True)),
        ("tensorrt",),
    ]
    assert [row.claim for row in rows if row.claim.check == "agrees with float64"] == CUDA_CLAIMS
    assert [(row.verdict, row.limit) for row in rows[::3]] == [
        (PASSED, LIMITS[precision]) for precision in (*("fp32", "fp16", "tf32") * 2, "tf32")
    ]
    assert len(rows) == 21


def test_tensorrt_that_is_not_installed_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pretend_cuda(monkeypatch, {"tensorrt": "libnvinfer.so.10"})
    rows = cuda_rows(subjects(), {CORE.path: core_model(), HALF.path: core_model()}, LIMITS)
    assert [name for name, *_ in opened] == ["cuda"] * 6
    assert len(rows) == 19
    assert rows[-1] == Row(CUDA_CLAIMS[-1], "not run: TensorRT's libraries are not installed", "libnvinfer.so.10")


def test_proof_of_where_it_ran_is_kept_with_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(sessions, "end_proof", lambda session: {"kernels": {"CUDA": len(session.batches)}})
    rows = by_check(cuda_rows(subjects(), {CORE.path: core_model()}, LIMITS)[:3])
    assert rows["agrees with float64"].details["kernels"] == {"CUDA": 4 + 32}
    assert "kernels" not in rows["batch 1 agrees with batch 32"].details
    assert "kernels" not in rows["runs the same twice"].details


def test_torch_is_judged_on_the_cpu_as_any_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu, on_cuda = torch_rows(subjects(), LIMITS)
    assert on_cpu.claim == Claim("torch CPU", "fp32", "checkpoint", "agrees with float64")
    assert (on_cpu.verdict, on_cpu.limit) == (PASSED, LIMITS["fp32"])
    assert on_cpu.max_error < 1e-6
    assert on_cuda == Row(Claim("torch CUDA", "fp32", "checkpoint", "agrees with float64"), NO_DEVICE)


def test_torch_that_is_off_fails_by_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = torch_rows(subjects(float64=subjects().float64 * 2), LIMITS)[0]
    assert (row.verdict, row.max_error) == (FAILED, pytest.approx(0.5, abs=1e-6))
    assert "torch float32 is off too (0.5)" in row.reason
    assert "torch float32 is not (" in torch_rows(subjects(crops=255 - subjects().crops), LIMITS)[0].reason


@pytest.fixture
def _tf32_is_on() -> Iterator[None]:
    """Not by monkeypatch, which cannot put torch's settings back."""
    modules = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [module.fp32_precision for module in modules]
    for module in modules:
        module.fp32_precision = "tf32"
    yield
    for module, precision in zip(modules, before, strict=True):
        module.fp32_precision = precision


def test_torch_on_cuda_is_judged_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given_subjects, seen = subjects(), []

    def predict(model: torch.nn.Module, pixels: np.ndarray, transform: Transform, **how: Any) -> np.ndarray:
        seen.append((how["device"].type, how["batch_size"], transform))
        assert model is given_subjects.model
        assert pixels is given_subjects.crops
        return given_subjects.float32

    moves: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(logits, "predict_logits", predict)
    monkeypatch.setattr(given_subjects.model, "to", moves.append)
    rows = torch_rows(given_subjects, LIMITS)
    assert [row.verdict for row in rows] == [PASSED, PASSED]
    assert [row.claim.runtime for row in rows] == ["torch CPU", "torch CUDA"]
    assert [row.limit for row in rows] == [LIMITS["fp32"]] * 2
    assert seen[1] == ("cuda", 32, given_subjects.facts.transform)
    assert seen[0][0] == "cpu"
    assert moves == []


@pytest.mark.usefixtures("_tf32_is_on")
def test_torch_that_raises_fails_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, device: torch.device, **__: Any) -> np.ndarray:
        raise RuntimeError(f"out of memory on {device}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(logits, "predict_logits", refuse)
    assert torch_rows(subjects(), LIMITS) == [
        Row(
            Claim("torch CPU", "fp32", "checkpoint", "agrees with float64"),
            FAILED,
            "RuntimeError: out of memory on cpu",
        ),
        Row(
            Claim("torch CUDA", "fp32", "checkpoint", "agrees with float64"),
            FAILED,
            "RuntimeError: out of memory on cuda",
        ),
    ]


def test_core_of_a_bare_network_is_the_file_itself() -> None:
    model = core_model()
    assert core_of(model) == model.SerializeToString()


def test_core_of_a_whole_model_runs_from_normalised_images_to_logits() -> None:
    core = onnx.load_from_string(core_of(whole_model()))
    assert [value.name for value in core.graph.input] == ["normalized"]
    assert [value.name for value in core.graph.output] == ["logits"]
    assert [node.op_type for node in core.graph.node] == ["GlobalAveragePool", "Flatten", "MatMul"]
    (images,) = subjects(3).batches(3)
    (found,) = sessions.cpu_session(core.SerializeToString()).run(None, {"normalized": images})
    assert found == pytest.approx(subjects(3).float64, abs=1e-5)
