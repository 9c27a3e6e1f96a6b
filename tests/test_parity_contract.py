"""What the exported files say of themselves, held against the checkpoint."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from stages.check_parity.contract import metadata_problems, read_whole, transform_problems
from stages.shared.files import file_digest
from tests.parity_models import DESCRIPTION, FACTS, NAMES_MATTER, WEIGHTS, constant, core_model, whole_model


def saved(tmp_path: Path, model: ModelProto | bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refusal(path: Path, sha256: str | None = None) -> str:
    with pytest.raises(ValueError) as error:
        read_whole(path, sha256)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_whole_file_is_read_with_and_without_a_known_digest(tmp_path: Path) -> None:
    path = saved(tmp_path, whole_model())
    assert read_whole(path, None) == read_whole(path, file_digest(path)) == whole_model()


def test_missing_file_says_what_to_run(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.onnx") == "no such file; run export"
    assert refusal(tmp_path) == "no such file; run export"


def test_file_of_another_digest_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, b"not an ONNX file")
    assert refusal(path, "0" * 64) == (
        f"sha256 {file_digest(path)[:12]}…, export.json says 000000000000…; "
        "the file is truncated, damaged or replaced, run export again"
    )


@pytest.mark.parametrize("damage", [lambda model: b"\xff" * 50, lambda model: model.SerializeToString()[:-7]])
def test_damaged_file_says_in_one_short_line_what_is_wrong(
    tmp_path: Path, damage: Callable[[ModelProto], bytes]
) -> None:
    path = saved(tmp_path, damage(whole_model()))
    with pytest.raises(Exception) as error:
        onnx.load(path)
    assert refusal(path) == f"not a whole ONNX file ({' '.join(str(error.value).split())[:200]}); run export again"


def test_graph_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    """Readable, but its first node takes what nothing makes; the checker says so over several lines."""
    model = core_model()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError) as error:
        onnx.checker.check_model(model)
    assert "\n" in str(error.value)
    expected = f"not a whole ONNX file ({' '.join(str(error.value).split())[:200]}); run export again"
    assert refusal(saved(tmp_path, model)) == expected


def test_tensors_elsewhere_are_refused_whether_or_not_the_other_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(core_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    reason = "keeps tensors in other files, only self-contained models are accepted; run export again"
    assert refusal(path) == reason
    (tmp_path / "weights.bin").unlink()
    assert refusal(path) == reason


def test_metadata_of_this_checkpoint_have_no_problems() -> None:
    assert metadata_problems(core_model(), FACTS, WEIGHTS) == []


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (
            {"weights_digest": "0123456789abcdef"},
            "weights_digest 0123456789ab…, the checkpoint's is eeeeeeeeeeee…: exported from another checkpoint",
        ),
        (
            {"data_digest": "0123456789abcdef"},
            "data_digest 0123456789ab…, the checkpoint's is dddddddddddd…: exported from another checkpoint",
        ),
        ({"class_names": '["b", "a"]'}, f"class names are ['b', 'a'], {NAMES_MATTER}"),
        ({"class_names": '["a"]'}, f"class names are ['a'], {NAMES_MATTER}"),
        ({"class_names": "a, b"}, f"class names are None, {NAMES_MATTER}"),
    ],
)
def test_metadata_of_another_checkpoint_are_named(metadata: dict[str, str], problem: str) -> None:
    assert metadata_problems(core_model(metadata={**DESCRIPTION, **metadata}), FACTS, WEIGHTS) == [problem]


def test_missing_metadata_are_three_problems() -> None:
    assert metadata_problems(core_model(metadata={}), FACTS, WEIGHTS) == [
        "weights_digest None…, the checkpoint's is eeeeeeeeeeee…: exported from another checkpoint",
        "data_digest None…, the checkpoint's is dddddddddddd…: exported from another checkpoint",
        f"class names are None, {NAMES_MATTER}",
    ]


def test_faithful_transform_has_no_problems() -> None:
    assert transform_problems(whole_model(), FACTS) == []


def test_graph_without_a_transform_says_what_is_missing() -> None:
    everything = "resize, stack_rgb, center_crop, normalize, normalize_scale, normalize_shift, resize_size"
    assert transform_problems(core_model(), FACTS) == [f"the test transform is not in the graph ({everything} missing)"]


@pytest.mark.parametrize("name", ["resize", "stack_rgb", "center_crop", "normalize"])
def test_each_part_of_the_transform_is_missed(name: str) -> None:
    model = whole_model()
    next(node for node in model.graph.node if node.name == name).name = "other"
    assert transform_problems(model, FACTS) == [f"the test transform is not in the graph ({name} missing)"]


@pytest.mark.parametrize("name", ["normalize_scale", "normalize_shift", "resize_size"])
def test_each_constant_of_the_transform_is_missed(name: str) -> None:
    model = whole_model()
    next(tensor for tensor in model.graph.initializer if tensor.name == name).name = "other"
    assert transform_problems(model, FACTS) == [f"the test transform is not in the graph ({name} missing)"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mean": (0.5, 0.4, 0.25)}, "mean in the graph is [0.5, 0.4, 0.25], the checkpoint's is [0.5, 0.4, 0.3]"),
        ({"mean": (0.50012, 0.4, 0.3)}, "mean in the graph is [0.5001, 0.4, 0.3], the checkpoint's is [0.5, 0.4, 0.3]"),
        ({"size": (6, 7)}, "resize to [6, 7], the checkpoint's is [6, 6]"),
        ({"size": (7, 7)}, "resize to [7, 7], the checkpoint's is [6, 6]"),
        (
            {"resize": {"antialias": 0}},
            "resize has antialias=0, expected 1: pixels are off by up to 137/255 without antialias",
        ),
        (
            {"resize": {"antialias": None}},
            "resize has antialias=0, expected 1: pixels are off by up to 137/255 without antialias",
        ),
        (
            {"resize": {"exclude_outside": None}},
            "resize has exclude_outside=0, expected 1: the default border rule is off by up to 17/255",
        ),
        ({"resize": {"mode": "cubic"}}, "resize has mode=cubic, expected linear: the test transform is bilinear"),
        ({"resize": {"mode": None}}, "resize has mode=nearest, expected linear: the test transform is bilinear"),
        (
            {"resize": {"coordinate_transformation_mode": "align_corners"}},
            "resize has coordinate_transformation_mode=align_corners, expected half_pixel: torchvision samples at half pixels",
        ),
        (
            {"order": (2, 1, 0)},
            "channels are stacked in the order [2, 1, 0], expected [0, 1, 2] (red and blue swapped)",
        ),
        ({"order": (1, 0, 2)}, "channels are stacked in the order [1, 0, 2], expected [0, 1, 2]"),
        ({"order": (0, 0, 0)}, "channels are stacked in the order [0, 0, 0], expected [0, 1, 2]"),
    ],
)
def test_each_difference_of_the_transform_is_named_alone(change: dict[str, Any], problem: str) -> None:
    assert transform_problems(whole_model(**change), FACTS) == [problem]


def test_wrong_deviation_shows_in_the_mean_as_well() -> None:
    """Only the quotient is in the graph."""
    model = whole_model(std=(0.2, 0.25, 0.2), mean=(0.5, 0.4, 0.3))
    assert transform_problems(model, FACTS) == [
        "std in the graph is [0.2, 0.25, 0.2], the checkpoint's is [0.2, 0.25, 0.1]"
    ]


def test_half_pixel_is_the_default_and_need_not_be_written() -> None:
    assert transform_problems(whole_model(resize={"coordinate_transformation_mode": None}), FACTS) == []


def test_normalisation_may_be_off_by_the_rounding_of_float32_and_no_more() -> None:
    assert transform_problems(whole_model(mean=(0.5, 0.4, 0.300008)), FACTS) == []
    assert len(transform_problems(whole_model(mean=(0.5, 0.4, 0.30003)), FACTS)) == 1


def test_one_number_for_all_channels_is_not_three() -> None:
    """It would broadcast, in the comparison as in the graph; export writes three."""
    grey = replace(FACTS, transform=replace(FACTS.transform, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))
    assert transform_problems(whole_model(mean=(0.5,), std=(0.2,)), grey) == [
        "mean in the graph is [0.5], the checkpoint's is [0.5, 0.5, 0.5]",
        "std in the graph is [0.2], the checkpoint's is [0.2, 0.2, 0.2]",
    ]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_scale_of_zero_is_a_problem_and_no_warning(shift: float) -> None:
    model = whole_model()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors["normalize_scale"].CopyFrom(constant("normalize_scale", np.zeros((1, 3, 1, 1))))
    tensors["normalize_shift"].CopyFrom(constant("normalize_shift", np.full((1, 3, 1, 1), shift)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problems = transform_problems(model, FACTS)
    assert problems[1] == "std in the graph is [inf, inf, inf], the checkpoint's is [0.2, 0.25, 0.1]"
    assert len(problems) == 2


def test_plane_that_is_gathered_from_nowhere_has_no_place_in_the_order() -> None:
    model = whole_model()
    stack = next(node for node in model.graph.node if node.name == "stack_rgb")
    stack.input[0] = "image"
    (problem,) = transform_problems(model, FACTS)
    assert problem == "channels are stacked in the order [None, 1, 2], expected [0, 1, 2]"


def test_plane_whose_channel_is_computed_has_no_place_in_the_order() -> None:
    model = whole_model()
    next(node for node in model.graph.node if node.op_type == "Gather").input[1] = "image"
    (problem,) = transform_problems(model, FACTS)
    assert problem == "channels are stacked in the order [None, 1, 2], expected [0, 1, 2]"
