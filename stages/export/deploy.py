"""model.onnx: uint8 images of any size in, probabilities out, with the test transform inside the graph.

Four things keep every node on CUDA and the pixels within 1/255 of torchvision's (measured, see shared/PITFALLS.md 32-33):
the channels are taken apart and stacked (a Transpose before Resize makes ONNX Runtime resize in NHWC, which CUDA cannot);
the resize is in uint8 and antialiased; `exclude_outside` is 1 (the default is off by up to 17/255 at the borders); and
whether there is an alpha channel is decided by slicing, not by arithmetic on the shape, which would run on the CPU.
"""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from stages.export.core import INPUT, OUTPUT
from stages.export.graph import PRODUCER

IMAGE, PIXELS, PROBABILITIES = "image", "test_pixels", "probabilities"


def deployable(core: ModelProto, resize: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> ModelProto:
    """uint8 (batch, height, width, 3 or 4) -> float32 (batch, classes): composite, resize, crop, normalise, `core`, softmax."""
    opset, ir_version = core.opset_import[0].version, core.ir_version
    before = _model(_preprocess_graph(resize, crop, mean, std), opset, ir_version)
    num_classes = core.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    after = _model(_softmax_graph(num_classes), opset, ir_version)
    model = compose.merge_models(before, _bare(core), [("before_core", INPUT)], producer_name=PRODUCER)
    model = compose.merge_models(model, after, [(OUTPUT, "logits_in")], outputs=[PROBABILITIES], producer_name=PRODUCER)
    model.graph.name, model.producer_version = "classifier", ""
    del model.opset_import[1:]  # each merge repeats it
    return model


def _preprocess_graph(resize: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> "helper.GraphProto":
    offset = round((resize - crop) / 2)  # as torchvision's center_crop rounds
    deviation = np.asarray(std, np.float64)
    constants = {
        "channel_0": np.array(0),
        "channel_1": np.array(1),
        "channel_2": np.array(2),
        "resize_size": np.array([resize, resize]),
        "crop_start": np.array([offset, offset]),
        "crop_end": np.array([offset + crop, offset + crop]),
        "crop_axes": np.array([2, 3]),
        "normalize_scale": (1 / (255 * deviation)).reshape(1, 3, 1, 1).astype(np.float32),
        "normalize_shift": (-np.asarray(mean, np.float64) / deviation).reshape(1, 3, 1, 1).astype(np.float32),
    }
    nodes = [*_composite_on_white(constants), *_resize_and_crop(), *_normalize()]
    return helper.make_graph(
        nodes,
        "preprocess",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", "height", "width", "channels"])],
        [helper.make_tensor_value_info("before_core", TensorProto.FLOAT, ["batch", 3, crop, crop])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def _composite_on_white(constants: dict[str, np.ndarray]) -> list[NodeProto]:
    """`image` -> `rgb` uint8 (batch, 3, height, width): c * alpha + 255 * (1 - alpha), rounded to nearest.

    A float32 holds every step well enough to be exact (the quotient is never near a half). An opaque plane stands behind
    the image's own alpha, so that the first of them is the fourth channel where there is one, and opaque where not.
    Planes are computed on as (batch, height, width): with a last axis of 1, ONNX Runtime took ten times as long on the CPU.
    """
    constants |= {
        "alpha_start": np.array([3]),
        "alpha_end": np.array([4]),
        "last_axis": np.array([3]),
        "channel_axis": np.array([1]),
        "always": np.array([True]),
        "opaque": np.array([255], np.uint8),
        "alpha_unit": np.array(1 / 255, np.float32),
        "minus_white": np.array(-255, np.float32),
        "white_and_half": np.array(255.5, np.float32),
    }
    nodes = []
    for channel in range(3):
        nodes += [
            helper.make_node("Gather", [IMAGE, f"channel_{channel}"], [f"flat_{channel}"], axis=3),
            helper.make_node("Unsqueeze", [f"flat_{channel}", "channel_axis"], [f"plane_{channel}"]),
        ]
    return [
        *nodes,
        helper.make_node("Concat", [f"plane_{channel}" for channel in range(3)], ["planes"], axis=1, name="stack_rgb"),
        helper.make_node("Slice", [IMAGE, "alpha_start", "alpha_end", "last_axis"], ["alpha_or_nothing"]),
        helper.make_node("Where", ["always", "opaque", "flat_0"], ["opaque_flat"]),
        helper.make_node("Unsqueeze", ["opaque_flat", "last_axis"], ["opaque_plane"]),
        helper.make_node("Concat", ["alpha_or_nothing", "opaque_plane"], ["alpha_then_opaque"], axis=3),
        helper.make_node("Gather", ["alpha_then_opaque", "channel_0"], ["alpha_flat"], axis=3),
        helper.make_node("Unsqueeze", ["alpha_flat", "channel_axis"], ["alpha"]),
        helper.make_node("Cast", ["alpha"], ["alpha_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["alpha_float", "alpha_unit"], ["opacity"]),
        helper.make_node("Mul", ["opacity", "minus_white"], ["white_covered"]),
        helper.make_node("Add", ["white_covered", "white_and_half"], ["white_left"]),
        helper.make_node("Cast", ["planes"], ["planes_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["planes_float", "opacity"], ["covering"]),
        helper.make_node("Add", ["covering", "white_left"], ["on_white"]),
        helper.make_node("Cast", ["on_white"], ["rgb"], to=TensorProto.UINT8),  # truncates: with the half, rounds
    ]


def _resize_and_crop() -> list[NodeProto]:
    return [
        helper.make_node(
            "Resize",
            ["rgb", "", "", "resize_size"],
            ["resized"],
            name="resize",
            axes=[2, 3],
            mode="linear",
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Slice", ["resized", "crop_start", "crop_end", "crop_axes"], [PIXELS], name="center_crop"),
    ]


def _normalize() -> list[NodeProto]:
    return [
        helper.make_node("Cast", [PIXELS], ["pixels_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels_float", "normalize_scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "normalize_shift"], ["before_core"], name="normalize"),
    ]


def _softmax_graph(num_classes: int) -> "helper.GraphProto":
    shape: list[str | int | None] = ["batch", num_classes]
    return helper.make_graph(
        [helper.make_node("Softmax", ["logits_in"], [PROBABILITIES], axis=-1, name="softmax")],
        "softmax",
        [helper.make_tensor_value_info("logits_in", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, shape)],
    )


def _model(graph: "helper.GraphProto", opset: int, ir_version: int) -> ModelProto:
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, producer_name=PRODUCER
    )


def _bare(core: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(core)
    del copy.metadata_props[:]
    return copy
