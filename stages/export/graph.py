"""Clean, check and write ONNX graphs."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes import Sequential, common

from stages.shared.files import replacing

PRODUCER = "stages.export"


def clean(model: ModelProto) -> ModelProto:
    """A copy without unused nodes, tensors and operator sets, its nodes in order, and nothing that names this machine.

    The exporter writes stack traces (absolute paths), its own version, and the shape of every intermediate tensor.
    """
    graph = ir.from_proto(model)
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        common.ClearMetadataAndDocStringPass(),
    )(graph)
    cleaned = ir.to_proto(graph)
    cleaned.graph.name = "classifier"
    cleaned.producer_name, cleaned.producer_version, cleaned.domain = PRODUCER, "", ""
    cleaned.ir_version = onnx.helper.find_min_ir_version_for(cleaned.opset_import)  # the oldest runtimes may read it
    del cleaned.graph.value_info[:]
    return cleaned


def check_and_save(path: Path, model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Set `metadata`, check the model and write it as one file; the same model gives the same bytes in every process."""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
