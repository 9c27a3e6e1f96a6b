"""What the files say of themselves and do before the first layer, held against the checkpoint: the causes of most bad numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from stages.shared.checkpoint import Facts
from stages.shared.files import file_digest

RESIZE = {"mode": b"linear", "coordinate_transformation_mode": b"half_pixel", "antialias": 1, "exclude_outside": 1}
RESIZE_DEFAULTS = {
    "mode": b"nearest",
    "coordinate_transformation_mode": b"half_pixel",
    "antialias": 0,
    "exclude_outside": 0,
}
MEANING = {
    "antialias": "pixels are off by up to 137/255 without antialias",
    "exclude_outside": "the default border rule is off by up to 17/255",
    "mode": "the test transform is bilinear",
    "coordinate_transformation_mode": "torchvision samples at half pixels",
}


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
    """Where the file's metadata do not describe this checkpoint."""
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


def transform_problems(model: ModelProto, facts: Facts) -> list[str]:
    """Where the test transform in the graph is not the checkpoint's."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    missing = [name for name in ("resize", "stack_rgb", "center_crop", "normalize") if name not in nodes]
    missing += [name for name in ("normalize_scale", "normalize_shift", "resize_size") if name not in constants]
    if missing:
        return [f"the test transform is not in the graph ({', '.join(missing)} missing)"]
    return [
        *_normalisation_problems(constants, facts),
        *_resize_problems(nodes["resize"], constants, facts),
        *_channel_problems(model, nodes["stack_rgb"], constants),
    ]


def _normalisation_problems(constants: Mapping[str, np.ndarray], facts: Facts) -> list[str]:
    with np.errstate(divide="ignore", invalid="ignore"):
        std = 1 / (255 * constants["normalize_scale"].astype(np.float64).ravel())
        mean = -constants["normalize_shift"].astype(np.float64).ravel() * std
    problems = []
    for name, found, expected in (("mean", mean, facts.transform.mean), ("std", std, facts.transform.std)):
        if found.shape != (3,) or not np.allclose(found, expected, atol=1e-5):
            problems.append(
                f"{name} in the graph is {np.round(found, 4).tolist()}, the checkpoint's is {list(expected)}"
            )
    return problems


def _resize_problems(node: NodeProto, constants: Mapping[str, np.ndarray], facts: Facts) -> list[str]:
    found: dict[str, Any] = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    problems = []
    for name, expected in RESIZE.items():
        value = found.get(name, RESIZE_DEFAULTS[name])
        if value != expected:
            problems.append(f"resize has {name}={_text(value)}, expected {_text(expected)}: {MEANING[name]}")
    if constants["resize_size"].tolist() != [facts.transform.resize, facts.transform.resize]:
        problems.append(
            f"resize to {constants['resize_size'].tolist()}, the checkpoint's is {[facts.transform.resize, facts.transform.resize]}"
        )
    return problems


def _channel_problems(model: ModelProto, stack: NodeProto, constants: Mapping[str, np.ndarray]) -> list[str]:
    """Follow each stacked plane back to the channel that it is gathered from."""
    makers = {name: node for node in model.graph.node for name in node.output}
    order = []
    for plane in stack.input:
        node = makers.get(plane)
        while node is not None and node.op_type != "Gather":
            node = makers.get(node.input[0])
        channel = constants.get(node.input[1]) if node else None
        order.append(int(channel) if channel is not None and channel.ndim == 0 else None)
    if order == [0, 1, 2]:
        return []
    swapped = " (red and blue swapped)" if order == [2, 1, 0] else ""
    return [f"channels are stacked in the order {order}, expected [0, 1, 2]{swapped}"]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
