"""Fold shape arithmetic into constants.

Where the batch is dynamic the exporter computes the shapes of reshapes in the graph (ViT, Swin). ONNX Runtime runs such
arithmetic on the CPU, so a session that must stay on CUDA refuses the model. Only the batch varies: a shape is evaluated
at two batch sizes, and the one entry that differs becomes -1.
"""

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from stages.shared.onnx_shapes import shape_values

BATCHES = (2, 3)


def fold_shapes(model: ModelProto, input_name: str, image_shape: tuple[int, ...]) -> None:
    """Replace computed shapes in place. What cannot be folded stays, and the placement rule will name it."""
    computed = shape_values(model.graph)
    if not computed:
        return
    values = _evaluate(model, computed, input_name, image_shape)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if not computed.issuperset(node.output):
            nodes.extend(_fold(model, node, values, input_name))
        else:
            nodes.append(node)  # unused from now on, unless something could not be folded
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _evaluate(
    model: ModelProto, names: set[str], input_name: str, image_shape: tuple[int, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each value at the two batch sizes."""
    probe = ModelProto()
    probe.CopyFrom(model)
    wanted = sorted(names)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runs = [session.run(wanted, {input_name: np.zeros((batch, *image_shape), np.float32)}) for batch in BATCHES]
    return {name: (first, second) for name, first, second in zip(wanted, *runs, strict=True)}


def _fold(
    model: ModelProto, node: NodeProto, values: dict[str, tuple[np.ndarray, np.ndarray]], input_name: str
) -> list[NodeProto]:
    for position, name in enumerate(node.input):
        if name not in values:
            continue
        first, second = values[name]
        if np.array_equal(first, second):
            node.input[position] = _constant(model, name, first)
        elif node.op_type == "Reshape" and (first != second).sum() == 1:
            node.input[position] = _constant(model, name, np.where(first != second, -1, first))
        elif node.op_type == "Expand" and (token := _token(model, node, first, second)) is not None:
            return _expand_token(model, node, token, input_name)
    return [node]


def _token(model: ModelProto, node: NodeProto, first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """The constant that `node` repeats once an image (ViT's class token), or None."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.name == node.input[0]]
    if not tensors or tuple(first != second) != (True, *[False] * (len(first) - 1)):
        return None
    token = numpy_helper.to_array(tensors[0])
    fits = (
        token.ndim == len(first)
        and token.shape[0] == 1
        and all(f in (1, t) for f, t in zip(first[1:], token.shape[1:], strict=True))
    )
    return token if fits else None


def _expand_token(model: ModelProto, node: NodeProto, token: np.ndarray, input_name: str) -> list[NodeProto]:
    """Repeat along a last axis, whose target is the batch alone (no arithmetic on it), and move that axis to the front."""
    output = node.output[0]
    model.graph.initializer.append(
        numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(token, 0, -1)), f"{output}_token")
    )
    return [
        helper.make_node("Shape", [input_name], [f"{output}_batch"], start=0, end=1),
        helper.make_node("Expand", [f"{output}_token", f"{output}_batch"], [f"{output}_last"]),
        helper.make_node("Transpose", [f"{output}_last"], [output], perm=[token.ndim - 1, *range(token.ndim - 1)]),
    ]


def _constant(model: ModelProto, name: str, value: np.ndarray) -> str:
    constant = f"{name}_folded"
    if all(tensor.name != constant for tensor in model.graph.initializer):
        tensor: TensorProto = numpy_helper.from_array(np.ascontiguousarray(value), constant)
        model.graph.initializer.append(tensor)
    return constant
