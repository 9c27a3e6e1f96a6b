"""Name the nodes that ONNX Runtime's CUDA provider cannot take, by a written rule, without a GPU.

Source: onnxruntime's docs/OperatorKernels.md (CUDAExecutionProvider). An operator that is not listed here is reported.
"""

from onnx import ModelProto, NodeProto

from stages.shared.onnx_shapes import shape_values

NEWEST_OPSET = 21  # from 22 on, MaxPool's (and others') newer versions have no CUDA kernel and fall back to the CPU

ON_CUDA = set(
    """
    Abs Add ArgMax AveragePool BatchNormalization Cast Clip Concat Constant Conv CumSum Div Erf Exp Expand Flatten Floor Gather
    Gelu Gemm GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LayerNormalization LRN MatMul Max MaxPool Mul Neg Not Pad Pow
    ReduceMean ReduceSum Relu Reshape Resize Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze
    Where
    """.split()  # noqa: SIM905 (fifty lines of a list would hide the rule)
)
SHAPE_ARITHMETIC = set("Add Sub Mul Div Concat Gather Slice Squeeze Unsqueeze Reshape Cast Where Range".split())  # noqa: SIM905


def misplaced(model: ModelProto) -> list[str]:
    """A sentence for each kind of node that would leave CUDA; empty when every node can be placed there."""
    problems = []
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset > NEWEST_OPSET:
        problems.append(
            f"opset {opset} is newer than {NEWEST_OPSET}: MaxPool and others fall back to the CPU; set export.opset to 18"
        )
    graph = model.graph
    from_shape = shape_values(graph)
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
