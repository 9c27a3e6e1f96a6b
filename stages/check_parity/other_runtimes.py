"""Check runtimes that are not ours, on whole images: OpenVINO, the page's onnxruntime-web, onnx's reference evaluator.

A runtime that leaves something out of a graph (an antialiased resize, say) does not say so, but its answers show it.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator
from PIL import Image, ImageOps

from stages.check_parity import sessions
from stages.check_parity.judge import FAILED, PASSED, Claim, Row, attempt, not_run, unreadable
from stages.check_parity.logits import Models
from stages.check_parity.subjects import Subjects
from stages.shared.decode import formats
from stages.shared.shipped_files import FAMILIARITY, MODEL, PROBABILITIES

# uint8 (1, height, width, 3 or 4) -> probabilities (1, classes) and familiarity (1,)
Answer = Callable[[np.ndarray], list[np.ndarray]]
Opener = Callable[[Path], AbstractContextManager[Answer]]
OUTPUTS = (PROBABILITIES, FAMILIARITY)

WEB_PROGRAM = Path(__file__).with_name("onnxruntime_web.mjs")
WEB_RUNTIME = Path("consumers") / "web" / "dist"
# Test images, spread over the split, for a runtime that prepares itself for each size anew, one on one thread, and one that
# takes seconds for an image: what a runtime leaves out of a graph shows on nearly every image.
NUM_OPENVINO, NUM_WEB, NUM_SLOW = 200, 64, 8
AWKWARD = (  # height, width, channels
    *((1, 1, 3), (1, 1, 4), (2, 2, 3), (1, 640, 3), (640, 1, 4), (3, 2000, 3), (2000, 3, 3), (5, 7, 4), (31, 97, 3)),
    *((64, 64, 3), (65, 63, 4), (224, 224, 3), (223, 225, 3), (257, 255, 4), (480, 640, 3), (640, 480, 4)),
    *((333, 1000, 3), (1080, 1920, 3), (1224, 1632, 4), (3000, 4000, 3)),
)


def other_runtime_rows(
    root: Path, subjects: Subjects, models: Models, limit: float, *, reference_evaluator: bool
) -> list[Row]:
    """Agreement on files of the test split, and on awkward images: within `limit` in probability and familiarity, no top-1 flipped."""
    runtimes: list[tuple[str, Opener | None, str, int]] = [
        ("OpenVINO CPU", _openvino, _lacks_openvino(), NUM_OPENVINO),
        ("onnxruntime-web wasm", _onnxruntime_web, _lacks_web(), NUM_WEB),
        ("onnxruntime-web WebGPU", None, "it needs a browser; tests/test_web.py compares it there", 0),
        (
            "ONNX reference evaluator",
            _reference_evaluator,
            "" if reference_evaluator else "it takes seconds for an image; add --reference-evaluator",
            NUM_SLOW,
        ),
    ]
    rows = []
    for runtime, opener, lack, most in runtimes:
        photos = Claim(runtime, "fp32", MODEL.name, "agrees with ONNX Runtime on test images")
        awkward = Claim(runtime, "fp32", MODEL.name, "agrees with ONNX Runtime on awkward images")
        if lack or opener is None:
            rows += not_run([photos, awkward], lack)
        elif MODEL.path not in models:
            rows += unreadable([photos, awkward])
        else:
            step = max(1, len(subjects.paths) // most)
            paths, path = subjects.paths[::step][:most], root / MODEL.path
            rows += attempt(photos, partial(_rows, photos, opener, path, map(read_image, paths), limit))
            rows += attempt(awkward, partial(_rows, awkward, opener, path, awkward_images(), limit))
    return rows


def _lacks_openvino() -> str:
    return "" if find_spec("openvino") else "openvino is not installed"


def _lacks_web() -> str:
    if shutil.which("node") is None:
        return "node is not installed"
    return "" if WEB_RUNTIME.is_dir() else f"{WEB_RUNTIME} is not built: npm --prefix consumers/web run build"


def _rows(claim: Claim, opener: Opener, model_path: Path, images: Iterable[np.ndarray], limit: float) -> list[Row]:
    errors, flips = [], 0
    with _onnx_runtime(model_path) as ours, opener(model_path) as theirs:
        for image in images:
            expected, found = ours(image[None]), theirs(image[None])
            off = [float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True)]
            errors.append(max(off) if np.isfinite(off).all() else float("inf"))
            flips += int(found[0].argmax() != expected[0].argmax())
    error = max(errors)
    details = {"num_images": len(errors), "top1_flips": flips}
    if error <= limit and not flips:
        return [Row(claim, PASSED, "", error, limit, details)]
    reason = f"off by {error:.2g} on image {int(np.argmax(errors))}, limit {limit:g}, {flips} top-1 flipped"
    return [Row(claim, FAILED, reason, error if np.isfinite(error) else None, limit, details)]


@contextmanager
def _onnx_runtime(model_path: Path) -> Iterator[Answer]:
    session = sessions.cpu_session(model_path)
    name = session.get_inputs()[0].name
    yield lambda images: list(session.run(OUTPUTS, {name: images}))


@contextmanager
def _openvino(model_path: Path) -> Iterator[Answer]:
    """In float32: left to itself it takes bfloat16 on CPUs that have instructions for it."""
    import openvino

    compiled = openvino.Core().compile_model(str(model_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    yield lambda images: [np.asarray(compiled([images])[name]) for name in OUTPUTS]


@contextmanager
def _onnxruntime_web(model_path: Path) -> Iterator[Answer]:
    """The runtime of the page in consumers/web, in node."""
    words = ["node", str(WEB_PROGRAM), str(WEB_RUNTIME.resolve()), str(model_path), *OUTPUTS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answered = process.stdin, process.stdout

        def answer(images: np.ndarray) -> list[np.ndarray]:
            asked.write(np.array(images.shape, "<u4").tobytes() + images.tobytes())
            asked.flush()
            found = json.loads(answered.readline() or '{"error": "node ended; its message is above"}')
            if isinstance(found, dict):
                raise ValueError(found["error"])
            return [np.array(found[0])[None], np.array(found[1])]

        yield answer


@contextmanager
def _reference_evaluator(model_path: Path) -> Iterator[Answer]:
    evaluator = ReferenceEvaluator(str(model_path))
    yield lambda images: [np.asarray(value) for value in evaluator.run(OUTPUTS, {evaluator.input_names[0]: images})]


def read_image(path: Path) -> np.ndarray:
    """uint8 (height, width, 3 or 4), upright. Both runtimes get the same, so rarer kinds of file need no more care here."""
    with Image.open(path, formats=formats()) as image:
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))


def awkward_images() -> Iterator[np.ndarray]:
    """uint8 (height, width, 3 or 4): smooth, as photos are, with noise on them; the same in every run."""
    generator = np.random.default_rng(0)
    for height, width, channels in AWKWARD:
        blobs = Image.fromarray(generator.integers(0, 256, (6, 6, channels), dtype=np.uint8))
        smooth = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noise = generator.integers(-12, 13, smooth.shape, dtype=np.int16)
        yield (smooth + noise).clip(0, 255).astype(np.uint8)
