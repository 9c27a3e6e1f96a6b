"""Check whole images: the resize inside the graph, and the shipped program on the test files."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper

from stages.check_parity import sessions
from stages.check_parity.judge import FAILED, PASSED, Claim, Row, attempt, not_run, unreadable
from stages.check_parity.subjects import Subjects
from stages.shared.metrics import softmax
from stages.shared.shipped_files import MODEL, PIXELS
from stages.shared.transforms import resize_center_crop

PROGRAM = Path("consumers") / "predict.py"
SIZES = ((480, 640), (640, 480), (97, 31), (1, 1), (333, 1000))  # height, width


def image_rows(root: Path, subjects: Subjects, models: Mapping[str, ModelProto], probability: float) -> list[Row]:
    """The same claims on the CPU and on CUDA."""
    rows = []
    for provider in ("cpu", "cuda"):
        runtime = f"ONNX Runtime {provider.upper()}"
        transform = Claim(runtime, "uint8", MODEL.name, "resizes as preprocess does")
        pipeline = Claim(runtime, "fp32", MODEL.name, "predict.py agrees with the PIL pipeline")
        if provider == "cuda" and not sessions.count_devices()[0]:
            rows += not_run([transform, pipeline], "no CUDA device")
        elif MODEL.path not in models:
            rows += unreadable([transform, pipeline])
        else:
            rows += attempt(transform, partial(_transform_rows, transform, models[MODEL.path], subjects, provider))
            rows += attempt(
                pipeline, partial(_pipeline_rows, pipeline, root / MODEL.path, subjects, provider, probability)
            )
    return rows


def _transform_rows(claim: Claim, model: ModelProto, subjects: Subjects, provider: str) -> list[Row]:
    """Opaque and transparent noise of odd sizes, through the graph and through preprocess; in steps of 1/255."""
    graph = _up_to_pixels(model)
    cpu = sessions.cpu_session(graph)
    session = cpu if provider == "cpu" else sessions.cuda_session(graph, tf32=False)
    transform, worst, unequal = subjects.facts.transform, 0, 0
    for image in sample_images():
        found, expected = (
            _pixels(session, image),
            resize_center_crop(_on_white(image), transform.resize, transform.crop),
        )
        worst = max(worst, int(np.abs(found - expected).max()))
        unequal += int((found != _pixels(cpu, image)).sum())
    off = f"pixels are off by up to {worst}/255, 1/255 is rounding: it resizes in another way (see the file row)"
    details = {} if provider == "cpu" else {"pixels_other_than_cpu": unequal}
    verdict, reason = (PASSED, "") if worst <= 1 else (FAILED, off)
    return [Row(claim, verdict, reason, worst / 255, 1 / 255, details)]


def _pipeline_rows(claim: Claim, model_path: Path, subjects: Subjects, provider: str, limit: float) -> list[Row]:
    """From the test files' bytes to probabilities by the program that users get, against the stored float64 logits."""
    found = run_program(model_path, subjects.paths, provider, subjects.facts.class_names)
    expected = softmax(subjects.float64)
    errors = np.abs(found - expected).max(1)
    error, worst = float(errors.max()), subjects.paths[int(errors.argmax())]
    ordered = np.sort(expected, axis=1)
    flipped = found.argmax(1) != expected.argmax(1)
    margin = float((ordered[:, -1] - ordered[:, -2])[flipped].max()) if flipped.any() else 0.0
    flips = int(flipped.sum())
    off = f"probability off by {error:.2g} on {worst}, limit {limit:g}, {flips} top-1 flipped"
    verdict, reason = (PASSED, "") if error <= limit and margin <= 2 * limit else (FAILED, off)
    return [Row(claim, verdict, reason, error, limit, {"top1_flips": flips})]


def run_program(model_path: Path, paths: list[Path], provider: str, class_names: tuple[str, ...]) -> np.ndarray:
    """Probabilities (images, classes) printed by consumers/predict.py. Raises ValueError with what it said otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "images.txt"  # the test split may be longer than a command line
        listing.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        words = [
            sys.executable,
            str(PROGRAM),
            "--json",
            "--provider",
            provider,
            "--model",
            str(model_path),
            f"@{listing}",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{PROGRAM} ended with {done.returncode}: {done.stderr.strip():.300}")
    answers = [json.loads(line)["probabilities"] for line in done.stdout.splitlines()]
    return np.array([[answer[name] for name in class_names] for answer in answers])


def sample_images() -> list[np.ndarray]:
    """uint8 (height, width, 3 or 4): noise, whose resize shows every wrong weight, the same in every run."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, channels), dtype=np.uint8) for size in SIZES for channels in (3, 4)]


def _on_white(image: np.ndarray) -> np.ndarray:
    if image.shape[2] == 3:
        return image
    alpha = image[..., 3:].astype(np.float64) / 255
    return np.floor(255 + (image[..., :3].astype(np.float64) - 255) * alpha + 0.5).astype(np.uint8)


def _up_to_pixels(model: ModelProto) -> bytes:
    """The graph with the resized and cropped pixels as its only output."""
    if not any(PIXELS in node.output for node in model.graph.node):
        raise ValueError(f"{MODEL.name}: the test transform is not in the graph (no {PIXELS})")
    part = ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, None))
    return part.SerializeToString()


def _pixels(session: onnxruntime.InferenceSession, image: np.ndarray) -> np.ndarray:
    (pixels,) = session.run([PIXELS], {session.get_inputs()[0].name: image[None]})
    return pixels[0].transpose(1, 2, 0)
