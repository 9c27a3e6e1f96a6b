"""Rows on runtimes that are not ours: what differs, flips or is not finite fails; what is not installed says so."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.check_parity import other_runtimes
from stages.check_parity.judge import FAILED, PASSED, Claim, Row
from stages.check_parity.other_runtimes import AWKWARD, Opener, awkward_images, other_runtime_rows
from tests.parity_models import subjects
from tests.tiny_model import write_tiny_model

CLAIM = Claim("OpenVINO CPU", "fp32", "model.onnx", "agrees with ONNX Runtime on test images")
IMAGES = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]


def answering(probability: float, familiarity: float = 0.5, at: int = 20) -> Opener:
    """A runtime that answers 0.6 and 0.5, but of the image of value `at` these."""

    def answer(images: np.ndarray) -> list[np.ndarray]:
        odd = images.flat[0] == at
        first = probability if odd else 0.6
        return [np.array([[first, 1 - first]]), np.array([familiarity if odd else 0.5])]

    return lambda _: contextlib.nullcontext(answer)


def row(monkeypatch: pytest.MonkeyPatch, opener: Opener) -> Row:
    monkeypatch.setattr(other_runtimes, "_onnx_runtime", answering(0.6))
    (found,) = other_runtimes._rows(CLAIM, opener, Path(), IMAGES, 0.002)
    return found


def test_runtime_that_answers_alike_passes_with_its_largest_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = row(monkeypatch, answering(0.601))
    assert (found.verdict, found.limit, found.details) == (PASSED, 0.002, {"num_images": 3, "top1_flips": 0})
    assert found.max_error == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("opener", "reason"),
    [
        (answering(0.7), "off by 0.1 on image 1, limit 0.002, 0 top-1 flipped"),
        (answering(0.6, familiarity=0.4), "off by 0.1 on image 1, limit 0.002, 0 top-1 flipped"),
        (answering(0.3), "off by 0.3 on image 1, limit 0.002, 1 top-1 flipped"),
        (answering(float("nan")), "off by inf on image 1, limit 0.002"),
    ],
)
def test_runtime_that_answers_otherwise_fails_and_names_the_image(
    monkeypatch: pytest.MonkeyPatch, opener: Opener, reason: str
) -> None:
    found = row(monkeypatch, opener)
    assert found.verdict == FAILED
    assert found.reason.startswith(reason)


def test_runtime_that_is_not_installed_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_runtimes, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    rows = other_runtime_rows(Path(), subjects(2), {}, 0.002, reference_evaluator=False)
    assert [found.verdict for found in rows] == [
        *["not run: openvino is not installed"] * 2,
        *["not run: node is not installed"] * 2,
        *["not run: it needs a browser; tests/test_web.py compares it there"] * 2,
        *["not run: it takes seconds for an image; add --reference-evaluator"] * 2,
    ]


@pytest.mark.skipif(other_runtimes._lacks_web() != "", reason=other_runtimes._lacks_web())
def test_the_pages_runtime_answers_as_ours_and_says_what_it_cannot_take(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_tiny_model(path)
    claim = Claim("onnxruntime-web wasm", "fp32", "model.onnx", "agrees with ONNX Runtime on awkward images")
    (found,) = other_runtimes._rows(claim, other_runtimes._onnxruntime_web, path, IMAGES, 1e-6)
    assert (found.verdict, found.details) == (PASSED, {"num_images": 3, "top1_flips": 0})
    with (
        other_runtimes._onnxruntime_web(path) as answer,
        pytest.raises(ValueError, match="dimension"),
    ):
        answer(np.zeros((1, 2, 2, 4), np.uint8))


def test_twenty_awkward_images_have_one_pixel_extreme_aspect_alpha_and_twelve_megapixels() -> None:
    assert len(AWKWARD) == 20
    assert {(1, 1, 3), (1, 1, 4), (2000, 3, 3), (3000, 4000, 3)} <= set(AWKWARD)
    first, second = next(awkward_images()), next(awkward_images())
    assert first.shape == (1, 1, 3)
    assert (first == second).all()
