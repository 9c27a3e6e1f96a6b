"""Check the files themselves: whole, of this checkpoint, with its test transform, placeable on CUDA."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from stages.check_parity.judge import FAILED, PASSED, Claim, Row, not_run
from stages.check_parity.placement import misplaced
from stages.check_parity.subjects import Subjects
from stages.shared.checkpoint import Facts
from stages.shared.files import file_digest
from stages.shared.shipped_files import FILES
from stages.shared.transforms import Transform

# Constants in the graph that hold the test transform, by what the file takes.
NORMALIZATION = ("normalize_scale", "normalize_shift")
TRANSFORM = {
    "image": ("resize_side", "odd_rows", "odd_columns", "red_green_blue", *NORMALIZATION),
    "crops": NORMALIZATION,
    "normalized": (),
}


def check_files(root: Path, subjects: Subjects) -> tuple[list[Row], dict[str, ModelProto]]:
    """A row or two a file, and the files that could be read, by their path under `root`."""
    rows: list[Row] = []
    models: dict[str, ModelProto] = {}
    for file in FILES:
        claim = Claim("file", "", file.name, "is whole and describes this checkpoint")
        if file.name in subjects.not_shipped:
            rows += not_run([claim], "not shipped", subjects.not_shipped[file.name])
            continue
        try:
            models[file.path] = model = read_whole(root / file.path, subjects.sha256.get(file.path))
        except ValueError as error:
            rows.append(Row(claim, FAILED, str(error)))
            continue
        problems = metadata_problems(model, subjects.facts, subjects.weights_digest)
        rows.append(_row(claim, problems + transform_problems(model, subjects.facts.transform, file.takes)))
        if "cuda" in file.devices:
            rows.append(
                _row(Claim("placement rule", "", file.name, "every node can be placed on CUDA"), misplaced(model))
            )
    return rows, models


def read_whole(path: Path, expected_sha256: str | None) -> ModelProto:
    """The model in `path`. Raises ValueError when it is missing, damaged, replaced, or not self-contained."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run export")
    found = file_digest(path)
    if expected_sha256 is not None and found != expected_sha256:
        raise ValueError(
            f"{path}: sha256 {found:.12}…, export.json says {expected_sha256:.12}…; the file is truncated, damaged or replaced, run export again"
        )
    try:
        model = onnx.load(path, load_external_data=False)
        external = any(tensor.external_data for tensor in model.graph.initializer)
        if not external:
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's exceptions share no base
        raise ValueError(
            f"{path}: not a whole ONNX file ({' '.join(str(error).split()):.200}); run export again"
        ) from None
    if external:
        raise ValueError(
            f"{path}: keeps tensors in other files, only self-contained models are accepted; run export again"
        )
    return model


def metadata_problems(model: ModelProto, facts: Facts, weights_digest: str) -> list[str]:
    """The fields of the file's metadata that do not describe this checkpoint."""
    metadata = {item.key: item.value for item in model.metadata_props}
    expected = {"weights_digest": weights_digest, "data_digest": facts.data_digest}
    problems = []
    for key, value in expected.items():
        if metadata.get(key) != value:
            found = metadata.get(key)
            problems.append(
                f"{key} {found and found[:12]}…, the checkpoint's is {value:.12}…: exported from another checkpoint"
            )
    try:
        names = json.loads(metadata.get("class_names", "null"))
    except json.JSONDecodeError:
        names = None
    if names != list(facts.class_names):
        problems.append(
            f"class names are {names}, the checkpoint's are {list(facts.class_names)}: each answer would carry another's name"
        )
    return problems


def transform_problems(model: ModelProto, transform: Transform, takes: str) -> list[str]:
    """The constants of the test transform in the graph that are not the checkpoint's. What it computes is judged by rows on images."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    missing = [name for name in TRANSFORM[takes] if name not in constants]
    if missing:
        return [f"the test transform is not in the graph ({', '.join(missing)} missing)"]
    problems = []
    if takes == "image":
        problems += _geometry_problems(constants, transform)
    if takes in ("image", "crops"):
        problems += _normalization_problems(constants, transform)
    return problems


def _geometry_problems(constants: Mapping[str, np.ndarray], transform: Transform) -> list[str]:
    problems = []
    if constants["resize_side"].tolist() != [transform.resize]:
        problems.append(f"resize to {constants['resize_side'].tolist()}, the checkpoint's is {[transform.resize]}")
    first = round((transform.resize - transform.crop) / 2)
    expected = [2 * (first + index) + 1 for index in range(transform.crop)]
    for name in ("odd_rows", "odd_columns"):
        if constants[name].ravel().tolist() != expected:
            problems.append(
                f"{name} of the crop are not the checkpoint's: {transform.crop} px from pixel {first} of the resized image"
            )
    order = constants["red_green_blue"].ravel().tolist()
    if order != [0, 1, 2]:
        swapped = " (red and blue swapped)" if order == [2, 1, 0] else ""
        problems.append(f"channels are taken in the order {order}, expected [0, 1, 2]{swapped}")
    return problems


def _normalization_problems(constants: Mapping[str, np.ndarray], transform: Transform) -> list[str]:
    with np.errstate(divide="ignore", invalid="ignore"):
        std = 1 / (255 * constants["normalize_scale"].astype(np.float64).ravel())
        mean = -constants["normalize_shift"].astype(np.float64).ravel() * std
    problems = []
    for name, found, expected in (("mean", mean, transform.mean), ("std", std, transform.std)):
        if found.shape != (3,) or not np.allclose(found, expected, atol=1e-5):
            problems.append(
                f"{name} in the graph is {np.round(found, 4).tolist()}, the checkpoint's is {list(expected)}"
            )
    return problems


def _row(claim: Claim, problems: list[str]) -> Row:
    return Row(claim, FAILED if problems else PASSED, "; ".join(problems))
