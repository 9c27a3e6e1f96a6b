"""core.onnx: normalised float images in, logits out; the network alone, and the subject of parity."""

import copy
import warnings

import onnx
import torch
from onnx import ModelProto
from torch import nn

from stages.export.graph import remove_unused, rename, strip
from stages.export.static_shapes import fold_shapes

INPUT, OUTPUT = "normalized", "logits"


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
                input_names=[INPUT],
                output_names=[OUTPUT],
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
    strip(core)
    _name_batch(core)
    fold_shapes(core, INPUT, (3, crop, crop))
    remove_unused(core)
    rename(core, {name: f"core_{index}" for index, name in enumerate(_intermediates(core))})
    for index, node in enumerate(core.graph.node):
        node.name = f"core_{index}_{node.op_type}"
    return core


def _with_global_mean(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean())
    return model


def _name_batch(core: ModelProto) -> None:
    for value in (*core.graph.input, *core.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _intermediates(core: ModelProto) -> list[str]:
    outside = {value.name for value in (*core.graph.input, *core.graph.output)}
    return [name for node in core.graph.node for name in node.output if name and name not in outside]
