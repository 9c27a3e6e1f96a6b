"""core.onnx: normalised float images in, logits out; the network alone, and the subject of parity."""

import copy
import warnings

import onnx
import onnx_ir as ir
import torch
from onnx import ModelProto
from torch import nn

from stages.export.graph import clean
from stages.export.static_shapes import fold_shapes
from stages.shared.shipped_files import LOGITS, NORMALIZED


class GlobalMean(nn.Module):
    """AdaptiveAvgPool2d(1), in an operator that every runtime has.

    On channels-last images the exporter turns the pooling into a gather over flattened memory, which CUDA cannot place.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3), keepdim=True)  # (batch, channels, 1, 1)


def export_core(model: nn.Module, crop: int, opset: int) -> ModelProto:
    """The network as ONNX: float32 (batch, 3, crop, crop) -> float32 (batch, classes), only the batch dynamic.

    Raises ValueError when torch cannot export the architecture.
    """
    model = _with_global_mean(copy.deepcopy(model).cpu().float()).eval()
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
                output_names=[LOGITS],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ValueError(f"{type(model).__name__} cannot be exported to ONNX opset {opset}: {error}") from error
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
    return _named_plainly(clean(core))


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


def _with_global_mean(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean())
    return model
