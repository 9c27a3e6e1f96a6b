"""Find the tensors of an ONNX graph that are arithmetic on shapes.

ONNX Runtime computes those on the CPU, wherever the rest runs.
"""

from onnx import GraphProto


def shape_values(graph: GraphProto) -> set[str]:
    """Names of the tensors that depend on the shapes of others, and on constants, alone."""
    constants = {tensor.name for tensor in graph.initializer} | {""}
    computed: set[str] = set()
    for node in graph.node:
        if node.op_type == "Expand":  # of values to a shape: no longer a shape
            continue
        inputs = set(node.input)
        if node.op_type == "Shape" or (inputs & computed and inputs <= computed | constants):
            computed.update(node.output)
    return computed
