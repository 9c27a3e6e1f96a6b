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

from stages.check_parity.files import metadata_problems, read_whole, transform_problems
from stages.export.deploy import deployable_on_crops
from stages.shared.files import file_digest
from tests.parity_models import (
    DESCRIPTION,
    FACTS,
    NAMES_MATTER,
    WEIGHTS,
    constant,
    core_model,
    replace_constants,
    whole_model,
)


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


TRANSFORM = FACTS.transform


def problems(model: ModelProto) -> list[str]:
    return transform_problems(model, TRANSFORM, "image")


def test_faithful_transform_has_no_problems() -> None:
    assert problems(whole_model()) == []


def test_files_that_take_crops_need_the_normalisation_and_networks_nothing() -> None:
    on_crops = deployable_on_crops(core_model(), [], TRANSFORM)
    assert transform_problems(on_crops, TRANSFORM, "crops") == []
    other = replace(TRANSFORM, mean=(0.1, 0.4, 0.3))
    assert transform_problems(on_crops, other, "crops") == [
        "mean in the graph is [0.5, 0.4, 0.3], the checkpoint's is [0.1, 0.4, 0.3]"
    ]
    assert transform_problems(core_model(), TRANSFORM, "normalized") == []


def test_graph_without_a_transform_says_what_is_missing() -> None:
    everything = "resize_side, odd_rows, odd_columns, red_green_blue, normalize_scale, normalize_shift"
    assert problems(core_model()) == [f"the test transform is not in the graph ({everything} missing)"]


@pytest.mark.parametrize(
    "name", ["resize_side", "odd_rows", "odd_columns", "red_green_blue", "normalize_scale", "normalize_shift"]
)
def test_each_constant_of_the_transform_is_missed(name: str) -> None:
    model = whole_model()
    next(tensor for tensor in model.graph.initializer if tensor.name == name).name = "other"
    assert problems(model) == [f"the test transform is not in the graph ({name} missing)"]


ODD = "of the crop are not the checkpoint's: 4 px from pixel 1 of the resized image"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mean": (0.5, 0.4, 0.25)}, ["mean in the graph is [0.5, 0.4, 0.25], the checkpoint's is [0.5, 0.4, 0.3]"]),
        (
            {"mean": (0.50012, 0.4, 0.3)},
            ["mean in the graph is [0.5001, 0.4, 0.3], the checkpoint's is [0.5, 0.4, 0.3]"],
        ),
        ({"size": 7}, ["resize to [7], the checkpoint's is [6]"]),
        ({"first": 0}, [f"odd_rows {ODD}", f"odd_columns {ODD}"]),
        (
            {"order": (2, 1, 0)},
            ["channels are taken in the order [2, 1, 0], expected [0, 1, 2] (red and blue swapped)"],
        ),
        ({"order": (1, 0, 2)}, ["channels are taken in the order [1, 0, 2], expected [0, 1, 2]"]),
        ({"order": (0, 0, 0)}, ["channels are taken in the order [0, 0, 0], expected [0, 1, 2]"]),
    ],
)
def test_each_difference_of_the_transform_is_named_alone(change: dict[str, Any], expected: list[str]) -> None:
    assert problems(whole_model(**change)) == expected


def test_wrong_deviation_shows_in_the_std_alone() -> None:
    """Only the quotient is in the graph."""
    model = whole_model(std=(0.2, 0.25, 0.2), mean=(0.5, 0.4, 0.3))
    assert problems(model) == ["std in the graph is [0.2, 0.25, 0.2], the checkpoint's is [0.2, 0.25, 0.1]"]


def test_normalisation_may_be_off_by_the_rounding_of_float32_and_no_more() -> None:
    assert problems(whole_model(mean=(0.5, 0.4, 0.300008))) == []
    assert len(problems(whole_model(mean=(0.5, 0.4, 0.30003)))) == 1


def test_one_number_for_all_channels_is_not_three() -> None:
    """It would broadcast, in the comparison as in the graph; export writes three."""
    grey = replace(TRANSFORM, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert transform_problems(whole_model(mean=(0.5,), std=(0.2,)), grey, "image") == [
        "mean in the graph is [0.5], the checkpoint's is [0.5, 0.5, 0.5]",
        "std in the graph is [0.2], the checkpoint's is [0.2, 0.2, 0.2]",
    ]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_scale_of_zero_is_a_problem_and_no_warning(shift: float) -> None:
    model = whole_model()
    scale, shifts = np.zeros((1, 3, 1, 1)), np.full((1, 3, 1, 1), shift)
    replace_constants(model, [constant("normalize_scale", scale), constant("normalize_shift", shifts)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = problems(model)
    assert found[1] == "std in the graph is [inf, inf, inf], the checkpoint's is [0.2, 0.25, 0.1]"
    assert len(found) == 2
