"""What every exported graph goes through: names made plain, traces of this machine removed, metadata, the checker, the file."""

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import ModelProto

from stages.shared.files import replacing

PRODUCER = "stages.export"


def strip(model: ModelProto) -> None:
    """Remove what differs from one machine to the next: the exporter's stack traces (absolute paths), its version, its shapes."""
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    graph.name, graph.doc_string, model.doc_string = "classifier", "", ""
    model.producer_name, model.producer_version, model.domain = PRODUCER, "", ""


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Rename values (inputs, outputs, intermediate tensors) wherever they appear."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def remove_unused(model: ModelProto) -> None:
    """Drop the nodes and initializers that no output depends on."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(initializers)


def sort_nodes(model: ModelProto) -> None:
    """Order the nodes so that each follows what it reads; otherwise as they were."""
    known = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    waiting, ordered = list(model.graph.node), []
    while waiting:
        index = next(index for index, node in enumerate(waiting) if known.issuperset(node.input))
        ordered.append(waiting.pop(index))
        known.update(ordered[-1].output)
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def check_and_save(path: Path, model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Set `metadata`, check the model and write it as one file; the same model gives the same bytes in every process."""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
