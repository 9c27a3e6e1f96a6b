"""Verdicts: how far from the reference is too far, and whose fault it is."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

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
from tests.parity_models import CLAIM, INFINITE


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
        "batch": None,
        "mode": "",
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
