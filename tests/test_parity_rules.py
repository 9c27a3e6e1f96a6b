"""The rules of check_parity, each on small numbers and small graphs made by hand; test_parity.py holds them against a real export."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from stages.check_parity import cuda, logits, sessions
from stages.check_parity.contract import metadata_problems, read_whole, transform_problems
from stages.check_parity.files import check_files
from stages.check_parity.judge import (
    FAILED,
    NO_DEVICE,
    PASSED,
    Claim,
    Distance,
    Row,
    attempt,
    distance,
    judge,
    not_run,
    unreadable,
    within,
)
from stages.check_parity.logits import CORE, HALF, INT8, core_of, cpu_rows, cuda_rows, torch_rows
from stages.check_parity.placement import misplaced
from stages.check_parity.subjects import Subjects
from stages.shared.checkpoint import Facts
from stages.shared.files import file_digest

INFINITE = Distance(float("inf"), float("inf"), 2, float("inf"))
CLAIM = Claim("ONNX Runtime CPU", "fp32", "core.onnx", "agrees with float64")
LIMITS = {"fp32": 0.125, "tf32": 0.25, "fp16": 0.375, "int8": 0.5}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
FACTS = Facts(
    architecture="squeezenet1_1",
    class_names=("a", "b"),
    resize=6,
    crop=4,
    mean=MEAN,
    std=STD,
    recipe="finetune",
    seed=0,
    source_digest=None,
    data_digest="d" * 64,
)
WEIGHTS = "e" * 64


# judge


def test_claim_is_named_by_what_it_has() -> None:
    assert CLAIM.name == "ONNX Runtime CPU, fp32, core.onnx: agrees with float64"
    assert Claim("file", "", "core.onnx", "is whole").name == "file, core.onnx: is whole"


def test_row_as_dict_holds_claim_verdict_and_every_number() -> None:
    row = Row(CLAIM, FAILED, "why", 0.5, 0.25, {"top1_flips": 3})
    assert row.as_dict() == {
        "runtime": "ONNX Runtime CPU",
        "precision": "fp32",
        "subject": "core.onnx",
        "check": "agrees with float64",
        "verdict": "failed",
        "reason": "why",
        "max_error": 0.5,
        "limit": 0.25,
        "top1_flips": 3,
    }
    assert Row(CLAIM, PASSED).as_dict()["max_error"] is None


def test_distance_is_measured_in_the_largest_reference_logit() -> None:
    reference = np.array([[8.0, 0.0], [2.0, 3.0], [1.0, -1.0]])
    found = distance(np.array([[8.0, 0.0], [3.0, 2.0], [1.0, 3.0]]), reference)
    assert found.error == 0.5
    assert found.flips == 2
    assert found.flip_margin == 0.25  # of margins 1 and 2, over 8
    sigmoid = 1 / (1 + np.exp(-2.0))
    assert found.probability == pytest.approx(2 * sigmoid - 1)  # the third image goes from +2 to -2
    assert found.as_dict() == {"max_probability_error": found.probability, "top1_flips": 2}


def test_negative_logits_have_a_scale_too() -> None:
    assert distance(np.array([[-8.0, -4.0]]), np.array([[-8.0, -5.0]])).error == 0.125


def test_margin_is_between_the_two_largest_of_many_classes() -> None:
    found = distance(np.array([[5.0, 10.0, 7.0, 0.0]]), np.array([[5.0, 8.0, 10.0, 0.0]]))
    assert (found.flips, found.flip_margin) == (1, 0.2)


def test_reference_of_zeros_is_its_own_scale() -> None:
    assert distance(np.array([[0.5, 0.0]]), np.zeros((1, 2))).error == 0.5


def test_float32_logits_are_compared_in_float64() -> None:
    """The rounding of a float32 copy of 0.1, which no arithmetic in float32 could see."""
    reference = np.array([[0.1, 0.0]])
    found = distance(reference.astype(np.float32), reference)
    assert found.error == abs(float(np.float32(0.1)) - 0.1) / 0.1
    single = np.array([[3.0, 0.0]], dtype=np.float32)
    assert distance(single, np.array([[1.0, 0.0]], dtype=np.float32)).error == 2.0


@pytest.mark.parametrize(
    "wrong",
    [np.array([[np.nan, 0.0], [0.0, 1.0]]), np.array([[-np.inf, 0.0], [0.0, 1.0]]), np.eye(3), np.zeros((2, 1))],
)
def test_what_is_not_finite_or_of_another_shape_is_infinitely_far(wrong: np.ndarray) -> None:
    found = distance(wrong, np.eye(2))
    assert found == INFINITE
    assert found.as_dict() == {"max_probability_error": None, "top1_flips": 2}


matrices = arrays.arrays(np.float64, (4, 3), elements=st.integers(-1000, 1000).map(lambda value: value / 16))


@given(matrices, matrices, st.sampled_from([0.5, 2.0, 1024.0]))
def test_distance_ignores_the_unit_and_is_zero_to_itself(found: np.ndarray, reference: np.ndarray, unit: float) -> None:
    same = distance(reference, reference)
    assert (same.error, same.probability, same.flips, same.flip_margin) == (0.0, 0.0, 0, 0.0)
    reference[0, 0] = 1.0  # not all zeros
    plain, scaled = distance(found, reference), distance(found * unit, reference * unit)
    assert (plain.error, plain.flips, plain.flip_margin) == (scaled.error, scaled.flips, scaled.flip_margin)


@given(matrices, matrices)
def test_a_flip_is_never_wider_than_twice_the_error(found: np.ndarray, reference: np.ndarray) -> None:
    """So whatever is within a limit by its error is within it by its flips."""
    measured = distance(found, reference)
    assert measured.flip_margin <= 2 * measured.error * (1 + 1e-12)


@pytest.mark.parametrize(
    ("error", "margin", "expected"),
    [(0.25, 0.5, True), (0.2500001, 0.0, False), (0.0, 0.5000001, False), (0.0, 0.0, True)],
)
def test_limit_itself_is_allowed(error: float, margin: float, expected: bool) -> None:
    assert within(Distance(error, 0.0, 1, margin), 0.25) is expected


def test_row_within_the_limit_passes_without_a_reason() -> None:
    row = judge(CLAIM, Distance(0.25, 0.125, 1, 0.5), 0.25, torch_error=9.0, torch_limit=0.25)
    assert row == Row(CLAIM, "passed", "", 0.25, 0.25, {"max_probability_error": 0.125, "top1_flips": 1})


@pytest.mark.parametrize(
    ("torch_error", "guilty"),
    [
        (0.5, "torch float32 is not (0.5): ONNX Runtime CPU or the weights in core.onnx are at fault"),
        (0.75, "torch float32 is off too (0.75): suspect the checkpoint or the reference, run export again"),
    ],
)
def test_row_over_the_limit_says_by_how_much_and_who_is_at_fault(torch_error: float, guilty: str) -> None:
    row = judge(CLAIM, Distance(0.375, 0.125, 3, 0.5), 0.25, torch_error=torch_error, torch_limit=0.5)
    assert row.verdict == "failed"
    assert row.reason == f"error 0.38 against float64 is over the limit 0.25, 3 top-1 flipped; {guilty}"
    assert (row.max_error, row.limit) == (0.375, 0.25)
    assert row.details == {"max_probability_error": 0.125, "top1_flips": 3}


def test_infinite_errors_are_written_as_none() -> None:
    """JSON has no infinity."""
    row = judge(CLAIM, INFINITE, 0.25, torch_error=0.0, torch_limit=0.5)
    assert (row.verdict, row.max_error, row.details["max_probability_error"]) == (FAILED, None, None)
    json.dumps(row.as_dict(), allow_nan=False)


def test_rows_of_an_attempt_are_handed_on() -> None:
    rows = [Row(CLAIM, PASSED), Row(CLAIM, FAILED)]
    assert attempt(CLAIM, lambda: rows) == rows


def test_exception_becomes_a_failed_row_of_one_short_line() -> None:
    def make() -> list[Row]:
        raise RuntimeError("no\n  kernel " + "x" * 500)

    assert attempt(CLAIM, make) == [Row(CLAIM, "failed", "RuntimeError: no kernel " + "x" * (400 - len("no kernel ")))]


def test_rows_not_run_say_why_for_each_claim() -> None:
    other = Claim("file", "", "core.onnx", "is whole")
    assert not_run([CLAIM, other], "no CUDA device", "no driver") == [
        Row(CLAIM, NO_DEVICE, "no driver"),
        Row(other, NO_DEVICE, "no driver"),
    ]
    assert not_run([CLAIM], "not shipped") == [Row(CLAIM, "not run: not shipped", "")]


def test_what_cannot_be_read_fails_and_points_to_its_file_row() -> None:
    assert unreadable([CLAIM]) == [Row(CLAIM, "failed", "core.onnx cannot be read (see its file row)")]
    assert unreadable([]) == []


# logits


class Pooled(torch.nn.Module):
    """Logits (batch, 2): twice the mean of channel 0, and of channel 1 the mean."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))[:, :2] * torch.tensor([2.0, 1.0], dtype=images.dtype)


def subjects(num: int = 40, **changes: Any) -> Subjects:
    """Images of noise; the references are what `Pooled` says of them."""
    crops = np.random.default_rng(0).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    images = ((crops / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    float64 = images.mean((2, 3))[:, :2] * [2.0, 1.0]
    values = {
        "model": Pooled(),
        "facts": FACTS,
        "weights_digest": WEIGHTS,
        "sha256": {},
        "not_shipped": {},
        "crops": crops,
        "images": images.astype(np.float32),
        "paths": [Path(f"{index}.png") for index in range(num)],
        "float64": float64,
        "float32": float64.astype(np.float32),
    }
    return Subjects(**{**values, **changes})


def constant(name: str, value: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype=dtype), name)


def core_model(
    weights: Any = (2.0, 1.0), name: str = "normalized", metadata: dict[str, str] | None = None
) -> ModelProto:
    """`Pooled` as ONNX."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", [name], ["pooled"], name="core_0"),
            helper.make_node("Flatten", ["pooled"], ["flat"], name="core_1"),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"], name="core_2"),
        ],
        "core",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [constant("weights", [[weights[0], 0.0], [0.0, weights[1]], [0.0, 0.0]])],
    )
    return finished(graph, metadata)


def finished(graph: onnx.GraphProto, metadata: dict[str, str] | None = None, opset: int = 18) -> ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(model, DESCRIPTION if metadata is None else metadata)
    return model


DESCRIPTION = {"weights_digest": WEIGHTS, "data_digest": "d" * 64, "class_names": '["a", "b"]'}


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
        [row for row in cpu_rows(subjects(), {CORE: core_model()}, LIMITS) if row.claim.subject == "core.onnx"]
    )


def test_faithful_files_pass_on_the_cpu_in_each_precision() -> None:
    models = {CORE: core_model(), HALF: core_model((2.25, 1.0)), INT8: core_model((2.5, 1.0))}
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
    ("name", "precision", "factor"), [(CORE, "fp32", 1.2), (HALF, "fp16", 1.4), (INT8, "int8", 1.6)]
)
def test_file_beyond_the_limit_of_its_precision_fails(name: str, precision: str, factor: float) -> None:
    rows = cpu_rows(subjects(), {name: core_model((2 * factor, factor))}, LIMITS)
    (row,) = [
        row for row in rows if row.claim == Claim("ONNX Runtime CPU", precision, Path(name).name, "agrees with float64")
    ]
    assert row.verdict == FAILED
    assert row.max_error == pytest.approx(factor - 1, abs=1e-6)
    assert "torch float32 is not (" in row.reason


def test_wrong_reference_is_told_by_torchs_own_float32() -> None:
    """The stored float32 logits disagree with the stored float64 ones as well."""
    off = subjects(float64=subjects().float64 * 2)
    rows = by_check([row for row in cpu_rows(off, {CORE: core_model()}, LIMITS) if row.claim.subject == "core.onnx"])
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
    rows = cpu_rows(subjects(), {CORE: core_model()}, LIMITS)
    assert rows[0] == Row(CLAIM, FAILED, "RuntimeError: no such operator")


def test_missing_files_are_unreadable_unless_export_left_them_out() -> None:
    rows = cpu_rows(subjects(not_shipped={"model.int8.onnx": "loses too much"}), {}, LIMITS)
    assert [(row.claim.subject, row.verdict, row.reason) for row in rows] == [
        ("core.onnx", FAILED, "core.onnx cannot be read (see its file row)"),
        ("core.fp16.onnx", FAILED, "core.fp16.onnx cannot be read (see its file row)"),
        ("model.int8.onnx", "not run: not shipped", "loses too much"),
    ]


CUDA_CLAIMS = [
    Claim("ONNX Runtime CUDA", "fp32", "core.onnx", "agrees with float64"),
    Claim("ONNX Runtime CUDA", "tf32", "core.onnx", "agrees with float64"),
    Claim("ONNX Runtime CUDA", "fp16", "core.fp16.onnx", "agrees with float64"),
    Claim("ONNX Runtime TensorRT", "fp32", "core.onnx", "agrees with float64"),
]


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, errors: dict[str, str] | None = None) -> list[tuple[str, Any]]:
    """A device whose sessions answer right; what was opened, in order, with tf32 and a profile or without."""
    opened: list[tuple[str, Any]] = []

    def cuda_session(core: bytes, *, tf32: bool, profile: Path) -> FakeSession:
        assert profile.name == "profile"
        assert profile.parent.is_dir()
        assert onnx.load_from_string(core).graph.input[0].name == "normalized"
        opened.append(("cuda", tf32))
        return FakeSession()

    def tensorrt_session(core: bytes) -> FakeSession:
        assert onnx.load_from_string(core).graph.input[0].name == "normalized"
        opened.append(("tensorrt", None))
        return FakeSession()

    monkeypatch.setattr(cuda, "count_devices", lambda: (1, ""))
    monkeypatch.setattr(cuda, "provider_error", lambda name: (errors or {}).get(name, ""))
    monkeypatch.setattr(sessions, "cuda_session", cuda_session)
    monkeypatch.setattr(sessions, "tensorrt_session", tensorrt_session)
    return opened


def test_without_a_device_every_cuda_claim_is_not_run_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "count_devices", lambda: (0, "no CUDA driver"))
    assert cuda_rows(subjects(), {CORE: core_model()}, LIMITS) == [
        Row(claim, NO_DEVICE, "no CUDA driver") for claim in CUDA_CLAIMS
    ]


def test_device_without_its_provider_fails_every_cuda_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pretend_cuda(monkeypatch, {"cuda": "libcurand.so.10"})
    reason = (
        "there is a CUDA device, but ONNX Runtime's CUDA provider does not load: libcurand.so.10; "
        "install onnxruntime-gpu[cuda,cudnn]"
    )
    assert cuda_rows(subjects(), {CORE: core_model()}, LIMITS) == [Row(claim, FAILED, reason) for claim in CUDA_CLAIMS]
    assert not opened


def test_each_cuda_precision_is_opened_as_such_and_judged_by_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pretend_cuda(monkeypatch)
    rows = cuda_rows(subjects(), {CORE: core_model(), HALF: core_model()}, LIMITS)
    assert opened == [("cuda", False), ("cuda", True), ("cuda", False), ("tensorrt", None)]
    assert [row.claim for row in rows if row.claim.check == "agrees with float64"] == CUDA_CLAIMS
    assert [(row.verdict, row.limit) for row in rows[::3]] == [
        (PASSED, LIMITS[precision]) for precision in ("fp32", "tf32", "fp16", "tf32")
    ]
    assert len(rows) == 12


def test_tensorrt_that_is_not_installed_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pretend_cuda(monkeypatch, {"tensorrt": "libnvinfer.so.10"})
    rows = cuda_rows(subjects(), {CORE: core_model(), HALF: core_model()}, LIMITS)
    assert [name for name, _ in opened] == ["cuda"] * 3
    assert len(rows) == 10
    assert rows[-1] == Row(CUDA_CLAIMS[-1], "not run: TensorRT's libraries are not installed", "libnvinfer.so.10")


def test_proof_of_where_it_ran_is_kept_with_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(sessions, "end_proof", lambda session: {"kernels": {"CUDA": len(session.batches)}})
    rows = by_check(cuda_rows(subjects(), {CORE: core_model()}, LIMITS)[:3])
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


@pytest.mark.usefixtures("_tf32_is_on")
def test_torch_on_cuda_is_judged_without_tf32_and_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_subjects, seen = subjects(), []

    def predict(model: torch.nn.Module, pixels: np.ndarray, **how: Any) -> np.ndarray:
        rounding = (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
        seen.append((how["device"].type, rounding, how["batch_size"], how["mean"], how["std"]))
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
    assert seen[1] == ("cuda", ("ieee", "ieee"), 32, MEAN, STD)
    assert seen[0][0] == "cpu"
    assert moves == ["cpu"]


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
    assert [value.name for value in core.graph.input] == ["before_core"]
    assert [value.name for value in core.graph.output] == ["logits"]
    assert [node.op_type for node in core.graph.node] == ["GlobalAveragePool", "Flatten", "MatMul"]
    images = subjects(3).images
    (found,) = sessions.cpu_session(core.SerializeToString()).run(None, {"before_core": images})
    assert found == pytest.approx(subjects(3).float64, abs=1e-5)


# contract


def gathered(channel: int, plane: str) -> list[NodeProto]:
    return [
        helper.make_node("Gather", ["resized", f"channel_{channel}"], [f"flat_{plane}"], axis=1),
        helper.make_node("Unsqueeze", [f"flat_{plane}", "channel_axis"], [f"byte_{plane}"]),
        helper.make_node("Cast", [f"byte_{plane}"], [plane], to=TensorProto.FLOAT),
    ]


def whole_model(
    *,
    order: tuple[int, int, int] = (0, 1, 2),
    resize: dict[str, Any] | None = None,
    size: tuple[int, ...] = (6, 6),
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    metadata: dict[str, str] | None = None,
) -> ModelProto:
    """uint8 (batch, 3, height, width) -> probabilities: the test transform, `Pooled`, softmax, under export's names."""
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "antialias": 1, "exclude_outside": 1}
    attributes = {**how, **(resize or {}), "axes": [2, 3]}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    nodes = [
        helper.make_node("Resize", ["image", "", "", "resize_size"], ["resized"], name="resize", **attributes),
        *(node for plane, channel in zip("rgb", order, strict=True) for node in gathered(channel, plane)),
        helper.make_node("Concat", ["r", "g", "b"], ["stacked"], name="stack_rgb", axis=1),
        helper.make_node("Slice", ["stacked", "crop_start", "crop_end", "crop_axes"], ["cropped"], name="center_crop"),
        helper.make_node("Mul", ["cropped", "normalize_scale"], ["scaled"], name="normalize_mul"),
        helper.make_node("Add", ["scaled", "normalize_shift"], ["before_core"], name="normalize"),
        *core_model(name="before_core").graph.node,
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
    ]
    constants = [
        constant("resize_size", size, np.int64),
        *(constant(f"channel_{channel}", channel, np.int64) for channel in range(3)),
        constant("channel_axis", [1], np.int64),
        constant("crop_start", [1, 1], np.int64),
        constant("crop_end", [5, 5], np.int64),
        constant("crop_axes", [2, 3], np.int64),
        constant("normalize_scale", [[[[1 / (255 * value)]] for value in std]]),
        constant("normalize_shift", [[[[-m / s]] for m, s in zip(mean, std, strict=True)]]),
        *core_model().graph.initializer,
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, "height", "width"])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "classifier", [image], [answer], constants)
    return onnx.shape_inference.infer_shapes(finished(graph, metadata))


def saved(tmp_path: Path, model: ModelProto | bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refusal(path: Path, sha256: str | None = None) -> str:
    with pytest.raises(ValueError) as error:
        read_whole(path, sha256)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_whole_file_is_read_with_and_without_a_known_digest(tmp_path: Path) -> None:
    path = saved(tmp_path, whole_model())
    assert read_whole(path, None) == read_whole(path, file_digest(path)) == whole_model()


def test_missing_file_says_what_to_run(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.onnx") == "no such file; run export"
    assert refusal(tmp_path) == "no such file; run export"


def test_file_of_another_digest_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, b"not an ONNX file")
    assert refusal(path, "0" * 64) == (
        f"sha256 {file_digest(path)[:12]}…, export.json says 000000000000…; "
        "the file is truncated, damaged or replaced, run export again"
    )


@pytest.mark.parametrize("damage", [lambda model: b"\xff" * 50, lambda model: model.SerializeToString()[:-7]])
def test_damaged_file_says_in_one_short_line_what_is_wrong(
    tmp_path: Path, damage: Callable[[ModelProto], bytes]
) -> None:
    path = saved(tmp_path, damage(whole_model()))
    with pytest.raises(Exception) as error:
        onnx.load(path)
    assert refusal(path) == f"not a whole ONNX file ({' '.join(str(error.value).split())[:200]}); run export again"


def test_graph_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    """Readable, but its first node takes what nothing makes; the checker says so over several lines."""
    model = core_model()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError) as error:
        onnx.checker.check_model(model)
    assert "\n" in str(error.value)
    expected = f"not a whole ONNX file ({' '.join(str(error.value).split())[:200]}); run export again"
    assert refusal(saved(tmp_path, model)) == expected


def test_tensors_elsewhere_are_refused_whether_or_not_the_other_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(core_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    reason = "keeps tensors in other files, only self-contained models are accepted; run export again"
    assert refusal(path) == reason
    (tmp_path / "weights.bin").unlink()
    assert refusal(path) == reason


def test_metadata_of_this_checkpoint_have_no_problems() -> None:
    assert metadata_problems(core_model(), FACTS, WEIGHTS) == []


NAMES_MATTER = "the checkpoint's are ['a', 'b']: each answer would carry another's name"


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (
            {"weights_digest": "0123456789abcdef"},
            "weights_digest 0123456789ab…, the checkpoint's is eeeeeeeeeeee…: exported from another checkpoint",
        ),
        (
            {"data_digest": "0123456789abcdef"},
            "data_digest 0123456789ab…, the checkpoint's is dddddddddddd…: exported from another checkpoint",
        ),
        ({"class_names": '["b", "a"]'}, f"class names are ['b', 'a'], {NAMES_MATTER}"),
        ({"class_names": '["a"]'}, f"class names are ['a'], {NAMES_MATTER}"),
        ({"class_names": "a, b"}, f"class names are None, {NAMES_MATTER}"),
    ],
)
def test_metadata_of_another_checkpoint_are_named(metadata: dict[str, str], problem: str) -> None:
    assert metadata_problems(core_model(metadata={**DESCRIPTION, **metadata}), FACTS, WEIGHTS) == [problem]


def test_missing_metadata_are_three_problems() -> None:
    assert metadata_problems(core_model(metadata={}), FACTS, WEIGHTS) == [
        "weights_digest None…, the checkpoint's is eeeeeeeeeeee…: exported from another checkpoint",
        "data_digest None…, the checkpoint's is dddddddddddd…: exported from another checkpoint",
        f"class names are None, {NAMES_MATTER}",
    ]


def test_faithful_transform_has_no_problems() -> None:
    assert transform_problems(whole_model(), FACTS) == []


def test_graph_without_a_transform_says_what_is_missing() -> None:
    everything = "resize, stack_rgb, center_crop, normalize, normalize_scale, normalize_shift, resize_size"
    assert transform_problems(core_model(), FACTS) == [f"the test transform is not in the graph ({everything} missing)"]


@pytest.mark.parametrize("name", ["resize", "stack_rgb", "center_crop", "normalize"])
def test_each_part_of_the_transform_is_missed(name: str) -> None:
    model = whole_model()
    next(node for node in model.graph.node if node.name == name).name = "other"
    assert transform_problems(model, FACTS) == [f"the test transform is not in the graph ({name} missing)"]


@pytest.mark.parametrize("name", ["normalize_scale", "normalize_shift", "resize_size"])
def test_each_constant_of_the_transform_is_missed(name: str) -> None:
    model = whole_model()
    next(tensor for tensor in model.graph.initializer if tensor.name == name).name = "other"
    assert transform_problems(model, FACTS) == [f"the test transform is not in the graph ({name} missing)"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mean": (0.5, 0.4, 0.25)}, "mean in the graph is [0.5, 0.4, 0.25], the checkpoint's is [0.5, 0.4, 0.3]"),
        ({"mean": (0.50012, 0.4, 0.3)}, "mean in the graph is [0.5001, 0.4, 0.3], the checkpoint's is [0.5, 0.4, 0.3]"),
        ({"size": (6, 7)}, "resize to [6, 7], the checkpoint's is [6, 6]"),
        ({"size": (7, 7)}, "resize to [7, 7], the checkpoint's is [6, 6]"),
        (
            {"resize": {"antialias": 0}},
            "resize has antialias=0, expected 1: pixels are off by up to 137/255 without antialias",
        ),
        (
            {"resize": {"antialias": None}},
            "resize has antialias=0, expected 1: pixels are off by up to 137/255 without antialias",
        ),
        (
            {"resize": {"exclude_outside": None}},
            "resize has exclude_outside=0, expected 1: the default border rule is off by up to 17/255",
        ),
        ({"resize": {"mode": "cubic"}}, "resize has mode=cubic, expected linear: the test transform is bilinear"),
        ({"resize": {"mode": None}}, "resize has mode=nearest, expected linear: the test transform is bilinear"),
        (
            {"resize": {"coordinate_transformation_mode": "align_corners"}},
            "resize has coordinate_transformation_mode=align_corners, expected half_pixel: torchvision samples at half pixels",
        ),
        (
            {"order": (2, 1, 0)},
            "channels are stacked in the order [2, 1, 0], expected [0, 1, 2] (red and blue swapped)",
        ),
        ({"order": (1, 0, 2)}, "channels are stacked in the order [1, 0, 2], expected [0, 1, 2]"),
        ({"order": (0, 0, 0)}, "channels are stacked in the order [0, 0, 0], expected [0, 1, 2]"),
    ],
)
def test_each_difference_of_the_transform_is_named_alone(change: dict[str, Any], problem: str) -> None:
    assert transform_problems(whole_model(**change), FACTS) == [problem]


def test_wrong_deviation_shows_in_the_mean_as_well() -> None:
    """Only the quotient is in the graph."""
    model = whole_model(std=(0.2, 0.25, 0.2), mean=(0.5, 0.4, 0.3))
    assert transform_problems(model, FACTS) == [
        "std in the graph is [0.2, 0.25, 0.2], the checkpoint's is [0.2, 0.25, 0.1]"
    ]


def test_half_pixel_is_the_default_and_need_not_be_written() -> None:
    assert transform_problems(whole_model(resize={"coordinate_transformation_mode": None}), FACTS) == []


def test_normalisation_may_be_off_by_the_rounding_of_float32_and_no_more() -> None:
    assert transform_problems(whole_model(mean=(0.5, 0.4, 0.300008)), FACTS) == []
    assert len(transform_problems(whole_model(mean=(0.5, 0.4, 0.30003)), FACTS)) == 1


def test_one_number_for_all_channels_is_not_three() -> None:
    """It would broadcast, in the comparison as in the graph; export writes three."""
    grey = Facts(**{**FACTS.__dict__, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)})
    assert transform_problems(whole_model(mean=(0.5,), std=(0.2,)), grey) == [
        "mean in the graph is [0.5], the checkpoint's is [0.5, 0.5, 0.5]",
        "std in the graph is [0.2], the checkpoint's is [0.2, 0.2, 0.2]",
    ]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_scale_of_zero_is_a_problem_and_no_warning(shift: float) -> None:
    model = whole_model()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors["normalize_scale"].CopyFrom(constant("normalize_scale", np.zeros((1, 3, 1, 1))))
    tensors["normalize_shift"].CopyFrom(constant("normalize_shift", np.full((1, 3, 1, 1), shift)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problems = transform_problems(model, FACTS)
    assert problems[1] == "std in the graph is [inf, inf, inf], the checkpoint's is [0.2, 0.25, 0.1]"
    assert len(problems) == 2


def test_plane_that_is_gathered_from_nowhere_has_no_place_in_the_order() -> None:
    model = whole_model()
    stack = next(node for node in model.graph.node if node.name == "stack_rgb")
    stack.input[0] = "image"
    (problem,) = transform_problems(model, FACTS)
    assert problem == "channels are stacked in the order [None, 1, 2], expected [0, 1, 2]"


def test_plane_whose_channel_is_computed_has_no_place_in_the_order() -> None:
    model = whole_model()
    next(node for node in model.graph.node if node.op_type == "Gather").input[1] = "image"
    (problem,) = transform_problems(model, FACTS)
    assert problem == "channels are stacked in the order [None, 1, 2], expected [0, 1, 2]"


# files


NAMES = ("model.onnx", "export/core.onnx", "export/core.fp16.onnx", "export/model.int8.onnx")


def exported(root: Path, models: dict[str, ModelProto] | None = None, **changes: Any) -> Subjects:
    """The four files in `root`, and the subjects that export.json would give."""
    (root / "export").mkdir()
    whole, core = whole_model(), core_model()
    for name in NAMES:
        model = (models or {}).get(name, core if "core" in name else whole)
        (root / name).write_bytes(model.SerializeToString())
    return subjects(1, **{"sha256": {name: file_digest(root / name) for name in NAMES}, **changes})


def test_faithful_files_are_read_and_every_rule_on_them_passes(tmp_path: Path) -> None:
    rows, models = check_files(tmp_path, exported(tmp_path))
    assert tuple(models) == NAMES
    assert models["model.onnx"] == whole_model()
    whole, placed = "is whole and describes this checkpoint", "every node can be placed on CUDA"
    assert rows == [
        Row(Claim(runtime, "", subject, check), PASSED, "")
        for runtime, subject, check in (
            ("file", "model.onnx", whole),
            ("placement rule", "model.onnx", placed),
            ("file", "core.onnx", whole),
            ("placement rule", "core.onnx", placed),
            ("file", "core.fp16.onnx", whole),
            ("placement rule", "core.fp16.onnx", placed),
            ("file", "model.int8.onnx", whole),
        )
    ]


def failed(rows: list[Row]) -> dict[str, str]:
    return {f"{row.claim.runtime}: {row.claim.subject}": row.reason for row in rows if row.verdict != PASSED}


def test_problems_of_a_file_are_listed_in_its_row(tmp_path: Path) -> None:
    wrong = whole_model(order=(2, 1, 0), metadata={**DESCRIPTION, "data_digest": "0" * 64})
    rows, models = check_files(tmp_path, exported(tmp_path, {"model.onnx": wrong, "export/model.int8.onnx": wrong}))
    reason = (
        "data_digest 000000000000…, the checkpoint's is dddddddddddd…: exported from another checkpoint; "
        "channels are stacked in the order [2, 1, 0], expected [0, 1, 2] (red and blue swapped)"
    )
    assert failed(rows) == {"file: model.onnx": reason, "file: model.int8.onnx": reason}
    assert {row.verdict for row in rows} == {PASSED, FAILED}
    assert tuple(models) == NAMES  # readable, so that their numbers are judged too


def test_bare_network_needs_metadata_and_no_transform(tmp_path: Path) -> None:
    bare = core_model(metadata={**DESCRIPTION, "class_names": "[]"})
    rows, _ = check_files(tmp_path, exported(tmp_path, {"export/core.onnx": bare, "export/model.int8.onnx": bare}))
    found = failed(rows)
    assert found["file: core.onnx"] == f"class names are [], {NAMES_MATTER}"
    assert "the test transform is not in the graph" in found["file: model.int8.onnx"]
    assert len(found) == 2


def test_file_that_leaves_cuda_fails_its_placement_row_alone(tmp_path: Path) -> None:
    other = core_model()
    other.graph.node[0].op_type = "GlobalLpPool"
    changed = {"export/core.onnx": other, "export/core.fp16.onnx": other, "export/model.int8.onnx": other}
    rows, _ = check_files(tmp_path, exported(tmp_path, changed))
    found = failed(rows)
    assert found["placement rule: core.onnx"] == "GlobalLpPool: no CUDA kernel is known for it"
    assert found["placement rule: core.fp16.onnx"] == "GlobalLpPool: no CUDA kernel is known for it"
    assert not any(name.startswith("file: core") for name in found)
    assert "placement rule: model.int8.onnx" not in found


def test_damaged_file_fails_its_row_and_is_left_out(tmp_path: Path) -> None:
    given_subjects = exported(tmp_path)
    (tmp_path / "export/core.onnx").write_bytes(b"")
    (tmp_path / "export/core.fp16.onnx").unlink()
    rows, models = check_files(tmp_path, given_subjects)
    assert tuple(models) == ("model.onnx", "export/model.int8.onnx")
    found = failed(rows)
    assert found["file: core.onnx"].startswith(
        f"{tmp_path / 'export/core.onnx'}: sha256 e3b0c44298fc…, export.json says "
    )
    assert found["file: core.fp16.onnx"] == f"{tmp_path / 'export/core.fp16.onnx'}: no such file; run export"
    assert [row.claim.subject for row in rows] == [
        "model.onnx", "model.onnx", "core.onnx", "core.fp16.onnx", "model.int8.onnx",
    ]  # fmt: skip
    assert {row.verdict for row in rows} == {PASSED, FAILED}


def test_variant_that_export_left_out_is_not_run_even_where_an_old_file_lies(tmp_path: Path) -> None:
    given_subjects = exported(tmp_path, not_shipped={"core.fp16.onnx": "loses 0.2 of top-1"})
    rows, models = check_files(tmp_path, given_subjects)
    assert "export/core.fp16.onnx" not in models
    assert failed(rows) == {"file: core.fp16.onnx": "loses 0.2 of top-1"}
    (row,) = [row for row in rows if row.claim.subject == "core.fp16.onnx"]
    assert (row.verdict, row.claim.check) == ("not run: not shipped", "is whole and describes this checkpoint")
    assert len(models) == 3
    assert [row.verdict for row in rows] == [PASSED] * 4 + ["not run: not shipped", PASSED]


def test_file_that_export_json_does_not_know_is_read_without_a_digest(tmp_path: Path) -> None:
    assert not failed(check_files(tmp_path, exported(tmp_path, sha256={}))[0])


# placement


def graph_of(*nodes: NodeProto, opsets: tuple[tuple[str, int], ...] = (("", 18),)) -> ModelProto:
    """Nodes on float32 `images` (batch, 3, 4, 4) and the constants `one`, `two` and `axes`; not run, only looked at."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [],
        [constant(name, [value], np.int64) for name, value in (("one", 1), ("two", 2), ("axes", 0))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets])


make = helper.make_node
SHAPE = make("Shape", ["images"], ["shape"])


def test_faithful_graphs_can_be_placed() -> None:
    assert misplaced(core_model()) == misplaced(whole_model()) == []


@pytest.mark.parametrize("opsets", [(("", 21),), (("ai.onnx", 21),), (("com.microsoft", 99), ("", 18))])
def test_opset_21_of_the_standard_operators_can_be_placed(opsets: tuple[tuple[str, int], ...]) -> None:
    assert misplaced(graph_of(opsets=opsets)) == []


@pytest.mark.parametrize("opsets", [(("", 22),), (("ai.onnx", 22),), (("com.microsoft", 1), ("", 22))])
def test_opset_22_cannot_be_placed(opsets: tuple[tuple[str, int], ...]) -> None:
    assert misplaced(graph_of(opsets=opsets)) == [
        "opset 22 is newer than 21: MaxPool and others fall back to the CPU; set export.opset to 18"
    ]


def test_unknown_operators_are_named_once_each_in_order() -> None:
    model = graph_of(
        make("NonZero", ["images"], ["a"]),
        make("GlobalLpPool", ["images"], ["b"]),
        make("NonZero", ["b"], ["c"]),
        make("Relu", ["images"], ["d"]),
    )
    assert misplaced(model) == [
        "GlobalLpPool: no CUDA kernel is known for it",
        "NonZero: no CUDA kernel is known for it",
    ]


def test_operator_of_another_domain_is_unknown_whatever_its_name() -> None:
    assert misplaced(graph_of(make("Relu", ["images"], ["a"], domain="com.microsoft"))) == [
        "Relu: no CUDA kernel is known for it"
    ]
    assert misplaced(graph_of(make("Relu", ["images"], ["a"], domain="ai.onnx"))) == []


@pytest.mark.parametrize(
    ("axes", "problems"),
    [
        ([2, 3], []),
        (None, []),
        ([1, 2], ["Resize of other axes than 2 and 3: CUDA resizes NCHW only"]),
        ([3, 2], ["Resize of other axes than 2 and 3: CUDA resizes NCHW only"]),
    ],
)
def test_resize_of_height_and_width_alone_can_be_placed(axes: list[int] | None, problems: list[str]) -> None:
    attributes = {"antialias": 1, "mode": "linear", **({} if axes is None else {"axes": axes})}
    assert misplaced(graph_of(make("Resize", ["images", "", "", "two"], ["a"], **attributes))) == problems


@pytest.mark.parametrize(
    "nodes",
    [
        [make("Gather", ["shape", "one"], ["a"])],
        [make("Add", ["one", "shape"], ["a"])],
        [make("Slice", ["shape", "one", "two", "", "one"], ["a"])],
        [make("Slice", ["shape", "one", "two", "axes", ""], ["a"])],
        [make("Mul", ["shape", "shape"], ["a"])],
        [make("Cast", ["shape"], ["a"], to=TensorProto.FLOAT)],
    ],
)
def test_arithmetic_on_a_shape_would_run_on_the_cpu(nodes: list[NodeProto]) -> None:
    assert misplaced(graph_of(SHAPE, *nodes)) == [
        f"{nodes[0].op_type} of a shape: ONNX Runtime computes shapes on the CPU"
    ]


def test_arithmetic_on_what_was_computed_from_a_shape_counts_too() -> None:
    model = graph_of(
        SHAPE,
        make("Gather", ["shape", "one"], ["batch"]),
        make("Sqrt", ["batch"], ["root"]),  # CUDA has it; it is no way in which shapes are computed
        make("Concat", ["root", "two"], ["target"], axis=0),
    )
    assert misplaced(model) == [
        "Concat of a shape: ONNX Runtime computes shapes on the CPU",
        "Gather of a shape: ONNX Runtime computes shapes on the CPU",
    ]


def test_values_that_only_take_their_form_from_a_shape_can_be_placed() -> None:
    model = graph_of(
        SHAPE,
        make("Reshape", ["images", "shape"], ["same"]),
        make("Expand", ["one", "shape"], ["ones"]),
        make("Mul", ["ones", "two"], ["twos"]),
        make("Mul", ["images", "shape"], ["product"]),
    )
    assert misplaced(model) == []


def test_shapes_after_an_expand_are_still_followed() -> None:
    model = graph_of(
        SHAPE,
        make("Expand", ["one", "shape"], ["ones"]),
        make("Add", ["shape", "one"], ["more"]),
    )
    assert misplaced(model) == ["Add of a shape: ONNX Runtime computes shapes on the CPU"]


def test_arithmetic_on_constants_can_be_placed() -> None:
    assert (
        misplaced(graph_of(SHAPE, make("Add", ["one", "two"], ["three"]), make("Shape", ["three"], ["of_three"]))) == []
    )
