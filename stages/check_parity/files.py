"""Rows on the files themselves: whole, of this checkpoint, with its test transform, and placeable on CUDA."""

from pathlib import Path

from onnx import ModelProto

from stages.check_parity.contract import metadata_problems, read_whole, transform_problems
from stages.check_parity.judge import FAILED, PASSED, Row, not_run
from stages.check_parity.placement import misplaced
from stages.check_parity.subjects import Subjects

FILES = ("model.onnx", "export/core.onnx", "export/core.fp16.onnx", "export/model.int8.onnx")
WITH_TRANSFORM = ("model.onnx", "export/model.int8.onnx")
FOR_CUDA = ("model.onnx", "export/core.onnx", "export/core.fp16.onnx")


def check_files(root: Path, subjects: Subjects) -> tuple[list[Row], dict[str, ModelProto]]:
    """A row or two a file, and the files that could be read, by their name under `root`."""
    rows, models = [], {}
    for name in FILES:
        row = {"runtime": "file", "precision": "", "subject": Path(name).name, "check": "describes this checkpoint"}
        if Path(name).name in subjects.not_shipped:
            rows += not_run([row], "not shipped", subjects.not_shipped[Path(name).name])
            continue
        try:
            model = read_whole(root / name, subjects.sha256.get(name))
        except ValueError as error:
            rows.append(Row(**row, verdict=FAILED, reason=str(error)))
            continue
        models[name] = model
        rows.append(_contract_row(model, name, subjects, row))
        if name in FOR_CUDA:
            rows.append(_placement_row(model, row))
    return rows, models


def _contract_row(model: ModelProto, name: str, subjects: Subjects, row: dict[str, str]) -> Row:
    problems = metadata_problems(model, subjects.facts, subjects.weights_digest)
    if name in WITH_TRANSFORM:
        problems += transform_problems(model, subjects.facts)
    return Row(**row, verdict=FAILED if problems else PASSED, reason="; ".join(problems))


def _placement_row(model: ModelProto, row: dict[str, str]) -> Row:
    problems = misplaced(model)
    placed = row | {"runtime": "placement rule", "check": "every node can be placed on CUDA"}
    return Row(**placed, verdict=FAILED if problems else PASSED, reason="; ".join(problems))
