"""Read what was measured of a model at a revision, its test predictions image by image."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem

from flows.project import parse_yaml

MODEL = "artifacts/model.onnx"
Image = tuple[str, str]  # path, digest of the decoded pixels


@dataclass(frozen=True)
class Measured:
    """A model's measurements, all from one revision."""

    recipe: str
    answers: Mapping[Image, str]  # the class that it gave each test image
    labels: Mapping[Image, str]
    ece: float
    parity: Mapping[str, int]  # rows by verdict: passed, failed, not run
    latency_ms: float | None  # ONNX Runtime, CPU, float32, one image; None where it was not measured
    num_bytes: int


def read(project: Path, revision: str) -> Measured:
    """Raises ValueError naming what the revision lacks."""
    files = DVCFileSystem(str(project), rev=revision)

    def load(path: str) -> str:
        try:
            return str(files.read_text(path, encoding="utf-8"))
        except (OSError, KeyError) as error:
            raise ValueError(f"{revision}: no {path} ({error})") from None

    recipe = _exported(load)
    rows = list(csv.DictReader(io.StringIO(load(f"artifacts/evaluate/{recipe}/predictions.csv"))))
    digests = [file["sha256"] for file in json.loads(load("artifacts/preprocess/test/files.json"))]
    images = [(row["path"], digest) for row, digest in zip(rows, digests, strict=True)]
    metrics = json.loads(load(f"artifacts/evaluate/{recipe}/metrics.json"))
    parity = json.loads(load("artifacts/parity.json"))["rows"]
    return Measured(
        recipe=recipe,
        answers={image: row["prediction"] for image, row in zip(images, rows, strict=True)},
        labels={image: row["label"] for image, row in zip(images, rows, strict=True)},
        ece=metrics["ece"],
        parity=_verdicts(parity),
        latency_ms=_latency(parity),
        num_bytes=int(files.info(MODEL)["size"]),
    )


def _exported(load: Callable[[str], str]) -> str:
    """The recipe that was exported: the one that params.yaml names, or else the selected one."""
    named = parse_yaml(load("params.yaml")).get("export", {}).get("recipe", "auto")
    return str(json.loads(load("artifacts/selection.json"))["recipe"] if named == "auto" else named)


def _verdicts(rows: list[dict[str, Any]]) -> dict[str, int]:
    verdicts = [str(row["verdict"]).partition(":")[0] for row in rows]
    return {verdict: verdicts.count(verdict) for verdict in ("passed", "failed", "not run")}


def _latency(rows: list[dict[str, Any]]) -> float | None:
    """The median of one image in milliseconds."""
    for row in rows:
        is_ours = row.get("runtime") == "ONNX Runtime CPU" and row.get("precision") == "fp32"
        if is_ours and row.get("batch") == 1 and row.get("p50_ms") is not None:
            return float(row["p50_ms"])
    return None
