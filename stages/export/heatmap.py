"""Map where the network looked: class activation of the most probable class.

Exact where a network ends in global average pooling and one linear layer (Zhou et al., Learning Deep Features for
Discriminative Localization, 2016): the class's logit is then the mean of this map over all positions, plus a bias.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from stages.shared.shipped_files import FEATURES, HEATMAP, LOGITS

GRAPH = """
<ir_version: 8, opset_import: ["": {opset}]>
heatmap (float[batch, {num_features}, {rows}, {columns}] {maps}) => (float[batch, {rows}, {columns}] {heatmap})
<int64[1] before_features = {{1}}, int64[3] flat_maps = {{0, {num_features}, -1}}, int64[3] as_map = {{-1, {rows}, {columns}}}>
{{
  most_probable = ArgMax <axis = 1, keepdims = 0> ({logits})
  class_weights = Gather <axis = 0> (weights_of_classes, most_probable)
  class_row = Unsqueeze (class_weights, before_features)
  positions = Reshape ({maps}, flat_maps)
  evidence = MatMul (class_row, positions)
  evidence_map = Reshape (evidence, as_map)
  {heatmap} = Relu (evidence_map)
}}
"""


def heatmap_graph(core: ModelProto, opset: int) -> ModelProto:
    """HEATMAP float32 (batch, rows, columns), 0 where nothing speaks for the class, over the crop; of a mirrored network, of the image itself.

    Raises ValueError where the network does not end in global average pooling and one linear layer.
    """
    makers = {name: node for node in core.graph.node for name in node.output}
    head = next((node for node in core.graph.node if FEATURES in node.input), makers[LOGITS])
    pooling = makers.get(FEATURES)
    while pooling is not None and pooling.op_type in ("Reshape", "Flatten"):
        pooling = makers.get(pooling.input[0])
    if head.op_type != "Gemm" or pooling is None or pooling.op_type != "GlobalAveragePool":
        raise ValueError(
            "export.heatmap: this network does not end in global average pooling and one linear layer; set it to false"
        )
    maps = pooling.input[0]
    _, num_features, rows, columns = _shape(core, maps)
    text = GRAPH.format(
        opset=opset,
        num_features=num_features,
        rows=rows,
        columns=columns,
        maps=maps,
        logits=LOGITS,
        heatmap=HEATMAP,
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(_weights(core, head), "weights_of_classes"))
    return model


def _weights(core: ModelProto, head: NodeProto) -> np.ndarray:
    """(classes, features)"""
    (found,) = [tensor for tensor in core.graph.initializer if tensor.name == head.input[1]]
    transposed = any(item.name == "transB" and item.i for item in head.attribute)
    weights = numpy_helper.to_array(found)
    return np.ascontiguousarray(weights if transposed else weights.T)


def _shape(core: ModelProto, name: str) -> list[int]:
    inferred = onnx.shape_inference.infer_shapes(core)
    (value,) = [value for value in inferred.graph.value_info if value.name == name]
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
