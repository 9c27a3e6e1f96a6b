"""Export the network alone: normalised images in; logits, the last features and the contrasts of early maps out."""

import copy
import math
import warnings
from collections.abc import Mapping

import onnx
import onnx_ir as ir
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import nn

from stages.export.graph import clean
from stages.export.static_shapes import fold_shapes
from stages.shared.contrasts import WithContrasts
from stages.shared.shipped_files import CONTRASTS, FEATURES, LOGITS, NORMALIZED


class GlobalMean(nn.Module):
    """AdaptiveAvgPool2d(1), in an operator that every runtime has.

    On channels-last images the exporter turns the pooling into a gather over flattened memory, which CUDA cannot place.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3), keepdim=True)  # (batch, channels, 1, 1)


def describe_core(metadata: Mapping[str, str], crop: int) -> dict[str, str]:
    """The metadata of a file that is the network alone."""
    takes = (
        f"{NORMALIZED} float32 [batch, 3, {crop}, {crop}], sRGB, resized, cropped and normalised as test_transform says"
    )
    gives = f"{LOGITS} float32 [batch, classes] in the order of class_names; {FEATURES} float32 [batch, dimensions]"
    return {**metadata, "input": takes, "output": gives}


def export_core(model: nn.Module, crop: int, opset: int) -> ModelProto:
    """The network as ONNX: float32 (batch, 3, crop, crop) -> logits (batch, classes), CONTRASTS, FEATURES (batch, d).

    Only the batch is dynamic.

    Raises ValueError when torch cannot export the architecture.
    """
    name = type(model).__name__
    model = WithContrasts(_with_global_mean(copy.deepcopy(model).cpu().float())).eval()
    batch = torch.export.Dim("batch", min=1, max=65535)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program = torch.onnx.export(
                model,
                (torch.zeros(2, 3, crop, crop),),
                dynamo=True,
                opset_version=opset,
                input_names=[NORMALIZED],
                output_names=[LOGITS, CONTRASTS],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be exported to ONNX opset {opset}: {error}") from error
    assert program is not None
    # a copy: model_proto is built from an intermediate form that is dropped with `program`
    return _finish(onnx.ModelProto.FromString(program.model_proto.SerializeToString()), crop, opset)


def _finish(core: ModelProto, crop: int, opset: int) -> ModelProto:
    found = {item.domain: item.version for item in core.opset_import}
    if found.get("") != opset:
        raise ValueError(f"torch wrote opset {found}, not the {opset} of export.opset; set export.opset to 18")
    for value in (*core.graph.input, *core.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    fold_shapes(core, NORMALIZED, (3, crop, crop))
    _pool_plainly(core)
    core = _named_plainly(clean(core))
    _add_features(core)
    return clean(core)


def _named_plainly(core: ModelProto) -> ModelProto:
    """Nodes and intermediate tensors numbered in their order: the exporter's names differ between versions of torch."""
    graph = ir.from_proto(core)
    outputs = set(graph.graph.outputs)
    for index, node in enumerate(graph.graph):
        node.name = f"core_{index}_{node.op_type}"
        for place, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = f"core_{index}" if place == 0 else f"core_{index}_{place}"
    return ir.to_proto(graph)


def _pool_plainly(core: ModelProto) -> None:
    """GlobalAveragePool for means over height and width: ReduceMean of opset 18 is unknown to some runtimes."""
    constants = {tensor.name: tensor for tensor in core.graph.initializer}
    for node in core.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        keeps = all(item.i == 1 for item in node.attribute if item.name == "keepdims")
        if keeps and sorted(numpy_helper.to_array(constants[node.input[1]]).tolist()) in ([2, 3], [-2, -1]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _add_features(core: ModelProto) -> None:
    """Make what the last layer takes another output, FEATURES (batch, d); of maps (SqueezeNet), their means."""
    nodes, num_classes = core.graph.node, core.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    makers = {name: node for node in nodes for name in node.output}
    last = makers[LOGITS]
    while last.op_type not in ("Gemm", "MatMul", "Conv"):
        last = makers[last.input[0]]
    (weights,) = [tensor for tensor in core.graph.initializer if tensor.name == last.input[1]]
    found = last.input[0]
    if last.op_type == "Conv":
        nodes.append(helper.make_node("GlobalAveragePool", [found], ["feature_means"], name="feature_means"))
        nodes.append(helper.make_node("Flatten", ["feature_means"], [FEATURES], name="feature_flat", axis=1))
    else:
        for node in nodes:
            node.input[:] = [FEATURES if name == found else name for name in node.input]
            node.output[:] = [FEATURES if name == found else name for name in node.output]
    num_features = math.prod(weights.dims) // num_classes
    core.graph.output.append(helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["batch", num_features]))


def _with_global_mean(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean())
    return model
