"""Small models and subjects, made by hand, for the tests of check_parity's rules; test_parity.py has a real export."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from stages.check_parity.judge import (
    Claim,
    Distance,
)
from stages.check_parity.subjects import Subjects
from stages.export.deploy import deployable
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
        "paths": [Path(f"{index}.png") for index in range(num)],
        "float64": float64,
        "float32": float64.astype(np.float32),
        "features": images.mean((2, 3)),
        "contrasts": images.std((2, 3)),
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


def whole_model(
    *,
    order: tuple[int, ...] = (0, 1, 2),
    size: int = 6,
    first: int = 1,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    metadata: dict[str, str] | None = None,
) -> ModelProto:
    """The deployable file of `Pooled`: the test transform of FACTS, or one that differs from it as told."""
    model = deployable(core_model(), [], FACTS.transform)
    odd = 2 * (first + np.arange(4)) + 1
    changed = [
        constant("red_green_blue", order, np.int64),
        constant("resize_side", [size], np.int32),
        constant("odd_rows", odd[:, None], np.int32),
        constant("odd_columns", odd[None], np.int32),
        constant("normalize_scale", [[[[1 / (255 * value)]] for value in std]]),
        constant("normalize_shift", [[[[-m / s]] for m, s in zip(mean, std, strict=True)]]),
    ]
    replace_constants(model, changed)
    helper.set_model_props(model, DESCRIPTION if metadata is None else metadata)
    return model


def replace_constants(model: ModelProto, tensors: list[TensorProto]) -> None:
    for tensor in tensors:
        (found,) = [item for item in model.graph.initializer if item.name == tensor.name]
        found.CopyFrom(tensor)


NAMES_MATTER = "the checkpoint's are ['a', 'b']: each answer would carry another's name"
