"""Rows on the files themselves: whole, of this checkpoint, with its test transform, and placeable on CUDA."""

from pathlib import Path

from onnx import ModelProto

from stages.check_parity.contract import metadata_problems, read_whole, transform_problems
from stages.check_parity.judge import FAILED, PASSED, Claim, Row, not_run
from stages.check_parity.placement import misplaced
from stages.check_parity.subjects import Subjects

FILES = ("model.onnx", "export/core.onnx", "export/core.fp16.onnx", "export/model.int8.onnx")
WITH_TRANSFORM = ("model.onnx", "export/model.int8.onnx")
FOR_CUDA = ("model.onnx", "export/core.onnx", "export/core.fp16.onnx")


def check_files(root: Path, subjects: Subjects) -> tuple[list[Row], dict[str, ModelProto]]:
    """A row or two a file, and the files that could be read, by their name under `root`."""
    rows: list[Row] = []
    models: dict[str, ModelProto] = {}
    for name in FILES:
        subject = Path(name).name
        claim = Claim("file", "", subject, "is whole and describes this checkpoint")
        if subject in subjects.not_shipped:
            rows += not_run([claim], "not shipped", subjects.not_shipped[subject])
            continue
        try:
            models[name] = read_whole(root / name, subjects.sha256.get(name))
        except ValueError as error:
            rows.append(Row(claim, FAILED, str(error)))
            continue
        rows.append(_row(claim, _contract_problems(models[name], name, subjects)))
        if name in FOR_CUDA:
            placed = Claim("placement rule", "", subject, "every node can be placed on CUDA")
            rows.append(_row(placed, misplaced(models[name])))
    return rows, models


def _contract_problems(model: ModelProto, name: str, subjects: Subjects) -> list[str]:
    problems = metadata_problems(model, subjects.facts, subjects.weights_digest)
    return problems + transform_problems(model, subjects.facts) if name in WITH_TRANSFORM else problems


def _row(claim: Claim, problems: list[str]) -> Row:
    return Row(claim, FAILED if problems else PASSED, "; ".join(problems))
