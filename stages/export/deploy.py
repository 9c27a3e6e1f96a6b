"""Join the test transform, the network, softmax and further outputs into one graph."""

from collections.abc import Sequence

import onnx
from onnx import ModelProto, helper

from stages.export.graph import clean
from stages.export.preprocessing import crops_graph, transform_graph
from stages.shared.shipped_files import LOGITS, PROBABILITIES
from stages.shared.transforms import Transform

SOFTMAX = """
<ir_version: 8, opset_import: ["": {opset}]>
softmax (float[batch, {num_classes}] {logits}) => (float[batch, {num_classes}] {probabilities})
{{
  [softmax] {probabilities} = Softmax <axis = 1> ({logits})
}}
"""


def deployable(core: ModelProto, extras: Sequence[ModelProto], transform: Transform) -> ModelProto:
    """uint8 (batch, height, width, 3 or 4) -> probabilities (batch, classes), and an output of each of `extras`.

    `core` gives logits and features, of which the extras make more (familiarity, a heatmap).
    """
    return _answering(transform_graph(transform, core.opset_import[0].version), core, extras)


def deployable_on_crops(core: ModelProto, extras: Sequence[ModelProto], transform: Transform) -> ModelProto:
    """uint8 (batch, crop, crop, 3) -> the same, for callers who resize by themselves."""
    return _answering(crops_graph(transform, core.opset_import[0].version), core, extras)


def _answering(transform: ModelProto, core: ModelProto, extras: Sequence[ModelProto]) -> ModelProto:
    softmax = softmax_graph(core, core.opset_import[0].version)
    outputs = [PROBABILITIES, *(extra.graph.output[0].name for extra in extras)]
    return chain([transform, core, softmax, *extras], outputs)


def softmax_graph(core: ModelProto, opset: int) -> ModelProto:
    num_classes = core.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    text = SOFTMAX.format(opset=opset, num_classes=num_classes, logits=LOGITS, probabilities=PROBABILITIES)
    return onnx.parser.parse_model(text)


def chain(models: Sequence[ModelProto], outputs: Sequence[str]) -> ModelProto:
    """One model of several: tensors of one name are one tensor. Takes what the first takes, returns `outputs`."""
    made = {value.name: value for model in models for value in model.graph.output}
    graph = helper.make_graph(
        [node for model in models for node in model.graph.node],
        "classifier",
        list(models[0].graph.input),
        [made[name] for name in outputs],
        [tensor for model in models for tensor in model.graph.initializer],
    )
    return clean(helper.make_model(graph, opset_imports=[models[0].opset_import[0]]))
