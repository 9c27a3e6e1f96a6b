"""Where an export cannot be what was asked for: said, left out or recorded as absent, never shipped in silence."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from stages.export import core as core_module
from stages.export import provenance, variants
from stages.export.core import export_core
from stages.export.variants import Demands, Judged, ship_variants
from stages.shared.checkpoint import Facts
from stages.shared.transforms import Transform

FACTS = Facts("resnet18", ("a", "b"), Transform(8, 8, (0.5,) * 3, (0.5,) * 3), "finetune", 0, None, "d" * 64)


def core_with_opset(opset: int) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "core", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_another_opset_than_the_one_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch wrote opset \{'': 20\}, not the 18 of export\.opset"):
        core_module._finish(core_with_opset(20), 8, 18)


@pytest.mark.slow
def test_a_network_that_torch_cannot_export_is_refused_by_name() -> None:
    class Undecided(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((1, 2, 3)) if images.sum().item() > 0 else images.amax((1, 2, 3))  # not one graph

    with pytest.raises(ValueError, match="Undecided cannot be exported to ONNX opset 18"):
        export_core(Undecided(), 8, 18)


def ship(folder: Path) -> list[dict[str, Any]]:
    images = np.zeros((4, 3, 8, 8), np.float32)
    reference = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    return ship_variants(
        folder,
        core_with_opset(18),
        lambda reduced: reduced,
        {},
        {},
        calibration=images,
        judged=Judged(images, np.array([0, 1, 0, 1]), reference),
        demands=Demands(0.1, {"fp16": 0.01, "int8": 0.01}, 0),
    )


def test_a_variant_that_cannot_be_made_does_not_stop_the_export_and_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise RuntimeError("no kernel for this\noperator")

    monkeypatch.setattr(variants, "WAYS", {"fp16": {"a way": cannot}, "int8": {"a way": cannot}})
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "core.fp16.onnx").write_text("of an earlier export")
    rows = ship(tmp_path)
    assert [(row["file"], row["shipped"], row["reason"]) for row in rows] == [
        ("core.fp16.onnx", False, "it could not be made: no kernel for this operator"),
        ("model.int8.onnx", False, "it could not be made: no kernel for this operator"),
    ]
    assert list((tmp_path / "export").iterdir()) == []


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        ([[np.nan, 0], [0, 2], [2, 0], [0, 2]], "its logits are not finite"),
        ([[2, 0], [2, 0], [2, 0], [0, 2]], "top-1 drops by 0.2500, more than export.max_accuracy_drop 0.1"),
        ([[2.1, 0], [0, 2], [2, 0], [0, 2]], "its logits are off by 0.05, more than {}, {} of parity's limit"),
    ],
)
def test_a_variant_that_is_too_far_off_is_not_shipped_and_says_by_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logits: list[list[float]], reason: str
) -> None:
    ways = {"a way": lambda core, _: core}
    monkeypatch.setattr(variants, "WAYS", {"fp16": ways, "int8": ways})
    monkeypatch.setattr(variants, "run_core", lambda *_: [np.array(logits, dtype=np.float64)])
    for row, limit in zip(ship(tmp_path), [(0.005, 0.5), (0.0025, 0.25)], strict=True):
        assert (row["shipped"], row["reason"]) == (False, reason.format(*limit))
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_null_where_git_is_absent_or_the_folder_is_no_work_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_revision() == {"commit": None, "modified": None}
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    assert provenance.git_revision() == {"commit": None, "modified": None}
