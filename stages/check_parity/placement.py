"""The written rule of which nodes ONNX Runtime's CUDA provider can take, so that a machine without a GPU can hold a file to it.

Source: onnxruntime's docs/OperatorKernels.md (CUDAExecutionProvider) and shared/PITFALLS.md 32-33. An operator that is not
listed here is reported: add it once it has been seen on CUDA.
"""

from onnx import GraphProto, ModelProto, NodeProto

NEWEST_OPSET = 21  # from 22 on, MaxPool's (and others') newer versions have no CUDA kernel and fall back to the CPU

ON_CUDA = {
    *(
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Conv",
        "Div",
        "Erf",
        "Exp",
        "Expand",
    ),
    *(
        "Flatten",
        "Gather",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LayerNormalization",
        "LRN",
    ),
    *(
        "MatMul",
        "MaxPool",
        "Mul",
        "Pad",
        "Pow",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "Shape",
        "Sigmoid",
    ),
    *("Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where", "Gelu", "Not"),
}
SHAPE_ARITHMETIC = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Concat",
    "Gather",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Reshape",
    "Cast",
    "Where",
    "Range",
}


def misplaced(model: ModelProto) -> list[str]:
    """A sentence for each kind of node that would leave CUDA; empty when every node can be placed there."""
    problems = []
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset > NEWEST_OPSET:
        problems.append(
            f"opset {opset} is newer than {NEWEST_OPSET}: MaxPool and others fall back to the CPU; set export.opset to 18"
        )
    graph = model.graph
    from_shape = _computed_from_shapes(graph)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ON_CUDA:
            problems.append(f"{node.op_type}: no CUDA kernel is known for it")
        elif node.op_type == "Resize" and not _resizes_nchw(node):
            problems.append("Resize of other axes than 2 and 3: CUDA resizes NCHW only")
        elif node.op_type in SHAPE_ARITHMETIC and from_shape.issuperset(node.output):
            problems.append(f"{node.op_type} of a shape: ONNX Runtime computes shapes on the CPU")
    return sorted(set(problems))


def _resizes_nchw(node: NodeProto) -> bool:
    axes = [list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"]
    return not axes or axes[0] == [2, 3]


def _computed_from_shapes(graph: GraphProto) -> set[str]:
    constants = {tensor.name for tensor in graph.initializer} | {""}
    computed: set[str] = set()
    for node in graph.node:
        if node.op_type == "Expand":  # of values to a shape: no longer a shape
            continue
        inputs = set(node.input)
        if node.op_type == "Shape" or (inputs & computed and inputs <= computed | constants):
            computed.update(node.output)
    return computed
