"""The written rule of which nodes CUDA can take."""

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from stages.check_parity.placement import misplaced
from tests.parity_models import constant, core_model, whole_model


def graph_of(*nodes: NodeProto, opsets: tuple[tuple[str, int], ...] = (("", 18),)) -> ModelProto:
    """Nodes on float32 `images` (batch, 3, 4, 4) and the constants `one`, `two` and `axes`; not run, only looked at."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [],
        [constant(name, [value], np.int64) for name, value in (("one", 1), ("two", 2), ("axes", 0))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets])


make = helper.make_node
SHAPE = make("Shape", ["images"], ["shape"])


def test_faithful_graphs_can_be_placed() -> None:
    assert misplaced(core_model()) == misplaced(whole_model()) == []


@pytest.mark.parametrize("opsets", [(("", 21),), (("ai.onnx", 21),), (("com.microsoft", 99), ("", 18))])
def test_opset_21_of_the_standard_operators_can_be_placed(opsets: tuple[tuple[str, int], ...]) -> None:
    assert misplaced(graph_of(opsets=opsets)) == []


@pytest.mark.parametrize("opsets", [(("", 22),), (("ai.onnx", 22),), (("com.microsoft", 1), ("", 22))])
def test_opset_22_cannot_be_placed(opsets: tuple[tuple[str, int], ...]) -> None:
    assert misplaced(graph_of(opsets=opsets)) == [
        "opset 22 is newer than 21: MaxPool and others fall back to the CPU; set export.opset to 18"
    ]


def test_unknown_operators_are_named_once_each_in_order() -> None:
    model = graph_of(
        make("NonZero", ["images"], ["a"]),
        make("GlobalLpPool", ["images"], ["b"]),
        make("NonZero", ["b"], ["c"]),
        make("Relu", ["images"], ["d"]),
    )
    assert misplaced(model) == [
        "GlobalLpPool: no CUDA kernel is known for it",
        "NonZero: no CUDA kernel is known for it",
    ]


def test_operator_of_another_domain_is_unknown_whatever_its_name() -> None:
    assert misplaced(graph_of(make("Relu", ["images"], ["a"], domain="com.microsoft"))) == [
        "Relu: no CUDA kernel is known for it"
    ]
    assert misplaced(graph_of(make("Relu", ["images"], ["a"], domain="ai.onnx"))) == []


@pytest.mark.parametrize(
    ("axes", "problems"),
    [
        ([2, 3], []),
        (None, []),
        ([1, 2], ["Resize of other axes than 2 and 3: CUDA resizes NCHW only"]),
        ([3, 2], ["Resize of other axes than 2 and 3: CUDA resizes NCHW only"]),
    ],
)
def test_resize_of_height_and_width_alone_can_be_placed(axes: list[int] | None, problems: list[str]) -> None:
    attributes = {"antialias": 1, "mode": "linear", **({} if axes is None else {"axes": axes})}
    assert misplaced(graph_of(make("Resize", ["images", "", "", "two"], ["a"], **attributes))) == problems


@pytest.mark.parametrize(
    "nodes",
    [
        [make("Gather", ["shape", "one"], ["a"])],
        [make("Add", ["one", "shape"], ["a"])],
        [make("Slice", ["shape", "one", "two", "", "one"], ["a"])],
        [make("Slice", ["shape", "one", "two", "axes", ""], ["a"])],
        [make("Mul", ["shape", "shape"], ["a"])],
        [make("Cast", ["shape"], ["a"], to=TensorProto.FLOAT)],
    ],
)
def test_arithmetic_on_a_shape_would_run_on_the_cpu(nodes: list[NodeProto]) -> None:
    assert misplaced(graph_of(SHAPE, *nodes)) == [
        f"{nodes[0].op_type} of a shape: ONNX Runtime computes shapes on the CPU"
    ]


def test_arithmetic_on_what_was_computed_from_a_shape_counts_too() -> None:
    model = graph_of(
        SHAPE,
        make("Gather", ["shape", "one"], ["batch"]),
        make("Sqrt", ["batch"], ["root"]),  # CUDA has it; it is no way in which shapes are computed
        make("Concat", ["root", "two"], ["target"], axis=0),
    )
    assert misplaced(model) == [
        "Concat of a shape: ONNX Runtime computes shapes on the CPU",
        "Gather of a shape: ONNX Runtime computes shapes on the CPU",
    ]


def test_values_that_only_take_their_form_from_a_shape_can_be_placed() -> None:
    model = graph_of(
        SHAPE,
        make("Reshape", ["images", "shape"], ["same"]),
        make("Expand", ["one", "shape"], ["ones"]),
        make("Mul", ["ones", "two"], ["twos"]),
        make("Mul", ["images", "shape"], ["product"]),
    )
    assert misplaced(model) == []


def test_shapes_after_an_expand_are_still_followed() -> None:
    model = graph_of(
        SHAPE,
        make("Expand", ["one", "shape"], ["ones"]),
        make("Add", ["shape", "one"], ["more"]),
    )
    assert misplaced(model) == ["Add of a shape: ONNX Runtime computes shapes on the CPU"]


def test_arithmetic_on_constants_can_be_placed() -> None:
    assert (
        misplaced(graph_of(SHAPE, make("Add", ["one", "two"], ["three"]), make("Shape", ["three"], ["of_three"]))) == []
    )
