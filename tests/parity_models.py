"""Small models and subjects, made by hand, for the tests of check_parity's rules; test_parity.py has a real export."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from stages.check_parity.judge import (
    Claim,
    Distance,
)
from stages.check_parity.subjects import Subjects
from stages.shared.checkpoint import Facts
from stages.shared.transforms import Transform

INFINITE = Distance(float("inf"), float("inf"), 2, float("inf"))


CLAIM = Claim("ONNX Runtime CPU", "fp32", "core.onnx", "agrees with float64")


LIMITS = {"fp32": 0.125, "tf32": 0.25, "fp16": 0.375, "int8": 0.5}


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)


FACTS = Facts(
    architecture="squeezenet1_1",
    class_names=("a", "b"),
    transform=Transform(6, 4, MEAN, STD),
    recipe="finetune",
    seed=0,
    source_digest=None,
    data_digest="d" * 64,
)


WEIGHTS = "e" * 64


class Pooled(torch.nn.Module):
    """Logits (batch, 2): twice the mean of channel 0, and of channel 1 the mean."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))[:, :2] * torch.tensor([2.0, 1.0], dtype=images.dtype)


def subjects(num: int = 40, **changes: Any) -> Subjects:
    """Images of noise; the references are what `Pooled` says of them."""
    crops = np.random.default_rng(0).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    images = ((crops / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    float64 = images.mean((2, 3))[:, :2] * [2.0, 1.0]
    values = {
        "model": Pooled(),
        "facts": FACTS,
        "weights_digest": WEIGHTS,
        "sha256": {},
        "not_shipped": {},
        "crops": crops,
        "images": images.astype(np.float32),
        "paths": [Path(f"{index}.png") for index in range(num)],
        "float64": float64,
        "float32": float64.astype(np.float32),
    }
    return Subjects(**{**values, **changes})


def constant(name: str, value: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype=dtype), name)


def core_model(
    weights: Any = (2.0, 1.0), name: str = "normalized", metadata: dict[str, str] | None = None
) -> ModelProto:
    """`Pooled` as ONNX."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", [name], ["pooled"], name="core_0"),
            helper.make_node("Flatten", ["pooled"], ["flat"], name="core_1"),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"], name="core_2"),
        ],
        "core",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [constant("weights", [[weights[0], 0.0], [0.0, weights[1]], [0.0, 0.0]])],
    )
    return finished(graph, metadata)


def finished(graph: onnx.GraphProto, metadata: dict[str, str] | None = None, opset: int = 18) -> ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(model, DESCRIPTION if metadata is None else metadata)
    return model


DESCRIPTION = {"weights_digest": WEIGHTS, "data_digest": "d" * 64, "class_names": '["a", "b"]'}


def gathered(channel: int, plane: str) -> list[NodeProto]:
    return [
        helper.make_node("Gather", ["resized", f"channel_{channel}"], [f"flat_{plane}"], axis=1),
        helper.make_node("Unsqueeze", [f"flat_{plane}", "channel_axis"], [f"byte_{plane}"]),
        helper.make_node("Cast", [f"byte_{plane}"], [plane], to=TensorProto.FLOAT),
    ]


def whole_model(
    *,
    order: tuple[int, int, int] = (0, 1, 2),
    resize: dict[str, Any] | None = None,
    size: tuple[int, ...] = (6, 6),
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    metadata: dict[str, str] | None = None,
) -> ModelProto:
    """uint8 (batch, 3, height, width) -> probabilities: the test transform, `Pooled`, softmax, under export's names."""
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "antialias": 1, "exclude_outside": 1}
    attributes = {**how, **(resize or {}), "axes": [2, 3]}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    nodes = [
        helper.make_node("Resize", ["image", "", "", "resize_size"], ["resized"], name="resize", **attributes),
        *(node for plane, channel in zip("rgb", order, strict=True) for node in gathered(channel, plane)),
        helper.make_node("Concat", ["r", "g", "b"], ["stacked"], name="stack_rgb", axis=1),
        helper.make_node("Slice", ["stacked", "crop_start", "crop_end", "crop_axes"], ["cropped"], name="center_crop"),
        helper.make_node("Mul", ["cropped", "normalize_scale"], ["scaled"], name="normalize_mul"),
        helper.make_node("Add", ["scaled", "normalize_shift"], ["before_core"], name="normalize"),
        *core_model(name="before_core").graph.node,
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
    ]
    constants = [
        constant("resize_size", size, np.int64),
        *(constant(f"channel_{channel}", channel, np.int64) for channel in range(3)),
        constant("channel_axis", [1], np.int64),
        constant("crop_start", [1, 1], np.int64),
        constant("crop_end", [5, 5], np.int64),
        constant("crop_axes", [2, 3], np.int64),
        constant("normalize_scale", [[[[1 / (255 * value)]] for value in std]]),
        constant("normalize_shift", [[[[-m / s]] for m, s in zip(mean, std, strict=True)]]),
        *core_model().graph.initializer,
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, "height", "width"])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "classifier", [image], [answer], constants)
    return onnx.shape_inference.infer_shapes(finished(graph, metadata))


NAMES_MATTER = "the checkpoint's are ['a', 'b']: each answer would carry another's name"
