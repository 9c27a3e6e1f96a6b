"""A classifier of a few nodes for the consumers' tests: quick to start, and its answers can be told beforehand.

The features of an image are its mean red, green and blue (0 to 1), its probabilities their softmax, its familiarity is
the mean red, and its heat map the picture's own brightness on a grid.
"""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

CLASSES = ["red", "green", "blue"]
SCALE = 4.0  # of the features before the softmax


def write_tiny_model(
    path: Path, *, familiarity: bool = True, heatmap: bool = False, scale: float = SCALE, **metadata: object
) -> None:
    """uint8 (batch, height, width, 3) -> what the names say; `metadata` values but texts are written as JSON."""
    constants = {"axes": (TensorProto.INT64, [2], [1, 2]), "unit": (TensorProto.FLOAT, [], [1 / 255])}
    constants |= {"scale": (TensorProto.FLOAT, [], [scale]), "red": (TensorProto.INT64, [], [0])}
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "unit"], ["fractions"]),
        helper.make_node("ReduceMean", ["fractions", "axes"], ["features"], keepdims=0),
        helper.make_node("Mul", ["features", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    outputs = {"probabilities": ["batch", 3]}
    if familiarity:
        nodes.append(helper.make_node("Gather", ["features", "red"], ["familiarity"], axis=1))
        outputs["familiarity"] = ["batch"]
    if heatmap:
        constants |= {"grid": (TensorProto.INT64, [2], [7, 7]), "channel": (TensorProto.INT64, [1], [3])}
        nodes += [
            helper.make_node("ReduceMean", ["fractions", "channel"], ["brightness"], keepdims=0),
            helper.make_node("Resize", ["brightness", "", "", "grid"], ["heatmap"], axes=[1, 2], mode="linear"),
        ]
        outputs["heatmap"] = ["batch", 7, 7]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    tensors = [helper.make_tensor(name, *value) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [image], infos, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    texts = {"class_names": CLASSES, "test_transform": {"resize": 16, "crop": 16}, "features": "features", **metadata}
    pairs = {key: value if isinstance(value, str) else json.dumps(value) for key, value in texts.items()}
    helper.set_model_props(model, {key: value for key, value in pairs.items() if value != "null"})
    onnx.checker.check_model(model)
    onnx.save(model, path)
