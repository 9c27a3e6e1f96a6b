"""Rows on the exported files: whole, of this checkpoint, with its transform."""

from pathlib import Path
from typing import Any

from onnx import ModelProto, helper

from stages.check_parity.files import check_files
from stages.check_parity.judge import (
    FAILED,
    PASSED,
    Claim,
    Row,
)
from stages.check_parity.subjects import Subjects
from stages.export.deploy import deployable_on_crops
from stages.shared.files import file_digest
from tests.parity_models import DESCRIPTION, FACTS, NAMES_MATTER, core_model, subjects, whole_model

NAMES = ("model.onnx", "export/model.crops.onnx", "export/core.onnx", "export/core.fp16.onnx", "export/model.int8.onnx")


def on_crops() -> ModelProto:
    model = deployable_on_crops(core_model(), [], FACTS.transform)
    helper.set_model_props(model, DESCRIPTION)
    return model


def exported(root: Path, models: dict[str, ModelProto] | None = None, **changes: Any) -> Subjects:
    """The five files in `root`, and the subjects that export.json would give."""
    (root / "export").mkdir()
    usual = {name: core_model() if "core" in name else whole_model() for name in NAMES}
    usual["export/model.crops.onnx"] = on_crops()
    for name in NAMES:
        model = (models or {}).get(name, usual[name])
        (root / name).write_bytes(model.SerializeToString())
    return subjects(1, **{"sha256": {name: file_digest(root / name) for name in NAMES}, **changes})


def test_faithful_files_are_read_and_every_rule_on_them_passes(tmp_path: Path) -> None:
    rows, models = check_files(tmp_path, exported(tmp_path))
    assert tuple(models) == NAMES
    assert models["model.onnx"] == whole_model()
    whole, placed = "is whole and describes this checkpoint", "every node can be placed on CUDA"
    assert rows == [
        Row(Claim(runtime, "", subject, check), PASSED, "")
        for runtime, subject, check in (
            ("file", "model.onnx", whole),
            ("placement rule", "model.onnx", placed),
            ("file", "model.crops.onnx", whole),
            ("placement rule", "model.crops.onnx", placed),
            ("file", "core.onnx", whole),
            ("placement rule", "core.onnx", placed),
            ("file", "core.fp16.onnx", whole),
            ("placement rule", "core.fp16.onnx", placed),
            ("file", "model.int8.onnx", whole),
        )
    ]


def failed(rows: list[Row]) -> dict[str, str]:
    return {f"{row.claim.runtime}: {row.claim.subject}": row.reason for row in rows if row.verdict != PASSED}


def test_problems_of_a_file_are_listed_in_its_row(tmp_path: Path) -> None:
    wrong = whole_model(order=(2, 1, 0), metadata={**DESCRIPTION, "data_digest": "0" * 64})
    rows, models = check_files(tmp_path, exported(tmp_path, {"model.onnx": wrong, "export/model.int8.onnx": wrong}))
    reason = (
        "data_digest 000000000000…, the checkpoint's is dddddddddddd…: exported from another checkpoint; "
        "channels are taken in the order [2, 1, 0], expected [0, 1, 2] (red and blue swapped)"
    )
    assert failed(rows) == {"file: model.onnx": reason, "file: model.int8.onnx": reason}
    assert {row.verdict for row in rows} == {PASSED, FAILED}
    assert tuple(models) == NAMES  # readable, so that their numbers are judged too


def test_bare_network_needs_metadata_and_no_transform(tmp_path: Path) -> None:
    bare = core_model(metadata={**DESCRIPTION, "class_names": "[]"})
    rows, _ = check_files(tmp_path, exported(tmp_path, {"export/core.onnx": bare, "export/model.int8.onnx": bare}))
    found = failed(rows)
    assert found["file: core.onnx"] == f"class names are [], {NAMES_MATTER}"
    assert "the test transform is not in the graph" in found["file: model.int8.onnx"]
    assert len(found) == 2


def test_file_that_leaves_cuda_fails_its_placement_row_alone(tmp_path: Path) -> None:
    other = core_model()
    other.graph.node[0].op_type = "GlobalLpPool"
    changed = {"export/core.onnx": other, "export/core.fp16.onnx": other, "export/model.int8.onnx": other}
    rows, _ = check_files(tmp_path, exported(tmp_path, changed))
    found = failed(rows)
    assert found["placement rule: core.onnx"] == "GlobalLpPool: no CUDA kernel is known for it"
    assert found["placement rule: core.fp16.onnx"] == "GlobalLpPool: no CUDA kernel is known for it"
    assert not any(name.startswith("file: core") for name in found)
    assert "placement rule: model.int8.onnx" not in found


def test_damaged_file_fails_its_row_and_is_left_out(tmp_path: Path) -> None:
    given_subjects = exported(tmp_path)
    (tmp_path / "export/core.onnx").write_bytes(b"")
    (tmp_path / "export/core.fp16.onnx").unlink()
    rows, models = check_files(tmp_path, given_subjects)
    assert tuple(models) == ("model.onnx", "export/model.crops.onnx", "export/model.int8.onnx")
    found = failed(rows)
    assert found["file: core.onnx"].startswith(
        f"{tmp_path / 'export/core.onnx'}: sha256 e3b0c44298fc…, export.json says "
    )
    assert found["file: core.fp16.onnx"] == f"{tmp_path / 'export/core.fp16.onnx'}: no such file; run export"
    assert [row.claim.subject for row in rows] == [
        "model.onnx", "model.onnx", "model.crops.onnx", "model.crops.onnx", "core.onnx", "core.fp16.onnx", "model.int8.onnx",
    ]  # fmt: skip
    assert {row.verdict for row in rows} == {PASSED, FAILED}


def test_variant_that_export_left_out_is_not_run_even_where_an_old_file_lies(tmp_path: Path) -> None:
    given_subjects = exported(tmp_path, not_shipped={"core.fp16.onnx": "loses 0.2 of top-1"})
    rows, models = check_files(tmp_path, given_subjects)
    assert "export/core.fp16.onnx" not in models
    assert failed(rows) == {"file: core.fp16.onnx": "loses 0.2 of top-1"}
    (row,) = [row for row in rows if row.claim.subject == "core.fp16.onnx"]
    assert (row.verdict, row.claim.check) == ("not run: not shipped", "is whole and describes this checkpoint")
    assert len(models) == 4
    assert [row.verdict for row in rows] == [PASSED] * 6 + ["not run: not shipped", PASSED]


def test_file_that_export_json_does_not_know_is_read_without_a_digest(tmp_path: Path) -> None:
    assert not failed(check_files(tmp_path, exported(tmp_path, sha256={}))[0])
