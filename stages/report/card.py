"""Write MODEL_CARD.md from results: purpose, accuracy and its uncertainty, mistakes, limits."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.report.parity import Parity
from stages.shared.files import read_json
from stages.shared.shipped_files import FILES

MAX_MISTAKES = 20

LICENCES = {
    "random": "None came from elsewhere: training started from random weights.",
    "synthetic": "None came from elsewhere: the source model was trained here, on drawn images.",
    "torchvision": (
        "torchvision publishes its weights with the library (BSD-3-Clause) and points out that they may be subject to the "
        "terms of the data they were trained on; ImageNet's allow non-commercial research and education."
    ),
}
# Of thresholds from decision.min_precision: stages/export/decisions.py.
PROMISE = (
    " They were set so that the true precision of these answers, on endless pictures like the training images, is at least what was "
    "asked for; the chance that a threshold was set and does not keep this is at most 5 %. A few answers may be less often right, by chance."
)
UNKNOWN_LICENCE = "Not known to this pipeline: ask whoever gave you the source weights before you pass the model on."


def model_card(
    sidecar: Mapping[str, Any],
    evaluation: Path,
    parity: Parity | None,
    *,
    num_train: int,
    num_test: int,
    fixes: Mapping[str, Any],
) -> str:
    """Markdown, of export.json's content, the evaluate stage's folder, check_parity's rows and what a person fixed."""
    facts = sidecar["facts"]
    names = facts["class_names"]
    sections = [
        f"# {facts['architecture']}: {' or '.join(names) if len(names) == 2 else ', '.join(names)}",
        _purpose(facts),
        _data(facts, sidecar, num_train, num_test, fixes),
        _accuracy(evaluation / "metrics.json"),
        _mistakes(evaluation / "predictions.csv"),
        _limits(facts, sidecar["metadata"]),
        _files(sidecar),
        _runtimes(parity),
        "## Licence of the source weights\n\n" + _licence(sidecar),
    ]
    return "\n\n".join(sections) + "\n"


def _purpose(facts: Mapping[str, Any]) -> str:
    num_classes, transform = len(facts["class_names"]), facts["transform"]
    return f"""## What it is for

Sorts photos into {num_classes} classes: {", ".join(facts["class_names"])}. `model.onnx` takes uint8 images
`[batch, height, width, 3 or 4]` (sRGB, upright, any size) and returns float32 probabilities `[batch, {num_classes}]`
in that order. It resizes to {transform["resize"]} x {transform["resize"]} px, cuts the central {transform["crop"]} x {transform["crop"]} px and normalises by itself.
Recipe `{facts["recipe"]}`, seed {facts["seed"]}."""


def _data(
    facts: Mapping[str, Any], sidecar: Mapping[str, Any], num_train: int, num_test: int, fixes: Mapping[str, Any]
) -> str:
    source, weights = sidecar["data"]["source"] or {}, sidecar["weights"]["source"] or {}
    counts = {kind: len(found) if isinstance(found, list) else found for kind, found in fixes.items()}
    done = [f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items() if count]
    return f"""## Data

{num_train} training and {num_test} test images from `{source.get("source", "a source that is not recorded")}`
(digest of the split `{facts["data_digest"]}`).
Source weights: `{weights.get("source", "none")}`.
Fixed by a person's list, `{sidecar.get("params", {}).get("dataset", {}).get("fixes", "fixes.yaml")}`, before anything was computed: {", ".join(done) or "nothing"}."""


def _accuracy(metrics_path: Path) -> str:
    if not metrics_path.is_file():
        return "## Accuracy\n\nNot measured: run the evaluate stage, then report again."
    metrics = read_json(metrics_path)
    lines = [
        "## Accuracy",
        "",
        f"On the {metrics.get('num_images', '')} test images, with 95 % intervals:",
        "",
        "| | value | 95 % interval |",
        "| --- | --- | --- |",
        _row("accuracy", metrics, "test_accuracy"),
        _row("loss", metrics, "test_loss"),
        _row("ROC-AUC", metrics, "roc_auc"),
        _row("calibration error (ECE)", metrics, "ece"),
    ]
    if before := metrics.get("before_fixes"):
        lines.append(
            _row(f"accuracy, by the {before['num_images']} test labels before that list", before, "test_accuracy")
        )
    for name, scores in metrics.get("per_class", {}).items():
        lines += [_row(f"{name}: {score}", scores, score) for score in ("precision", "recall")]
    return "\n".join(line for line in lines if line is not None)


def _row(title: str, values: Mapping[str, Any], key: str) -> str | None:
    if values.get(key) is None:
        return None
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return f"| {title} | {values[key]:.3f} | {interval} |"


def _mistakes(predictions_path: Path) -> str:
    if not predictions_path.is_file():
        return "## Mistakes\n\nNot listed: run the evaluate stage, then report again."
    with predictions_path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = [row for row in rows if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: -float(row[f"p_{row['prediction']}"]))
    lines = ["## Mistakes", "", f"{len(wrong)} of {len(rows)} test images are classified wrongly."]
    if wrong:
        lines += [
            "The most confident ones:",
            "",
            "| image | is | taken for | probability |",
            "| --- | --- | --- | --- |",
        ]
    for row in wrong[:MAX_MISTAKES]:
        path = row["path"].replace("|", "\\|")
        lines.append(
            f"| `{path}` | {row['label']} | {row['prediction']} | {float(row['p_' + row['prediction']]):.3f} |"
        )
    return "\n".join(lines)


def _limits(facts: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    thresholds = json.loads(metadata.get("thresholds", "{}"))
    probable = thresholds.get("probability", {})
    demanded = [f"{name} {value:.3f}" if value <= 1 else f"{name} never" for name, value in probable.items()]
    least = thresholds.get("familiarity", 0)
    familiar = f"below {least:.3f} the answer should not be used" if least else "no picture is refused for it"
    return f"""## Limits

Its probabilities are always those of its {len(facts["class_names"])} classes, also for a picture that shows none of them. The output
`familiarity` says how like the training images a picture is: {familiar}.
Answers of a class count from this probability on: {", ".join(demanded) or "any"}.{PROMISE if demanded else ""} Images are squashed to a square and only the centre is looked at: what lies
at the margins is not seen. The numbers above hold for pictures like the test images, and for no others. It was not tested
for fairness, robustness to attacks, or any use in which a mistake does harm."""


def _files(sidecar: Mapping[str, Any]) -> str:
    """The table of what is shipped; the numbers of the reduced ones are of training images that they were not calibrated on."""
    rows = {row["file"]: row for row in sidecar["variants"]}
    lines = [
        "## Files",
        "",
        f"Drop and error of the files of less precision were seen on {sidecar['machine']}.",
        "",
        "| file | what it is | made for | drop of top-1 | largest error of a logit | shipped |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for file in FILES:
        row = rows.get(file.name, {})
        numbers = " | ".join("" if row.get(key) is None else f"{row[key]:.4f}" for key in ("accuracy_drop", "error"))
        shipped = f"no: {row['reason']}" if row.get("reason") else "yes"
        lines.append(f"| `{file.path}` | {file.purpose} | {', '.join(file.devices)} | {numbers} | {shipped} |")
    return "\n".join(lines)


def _runtimes(parity: Parity | None) -> str:
    lines = [
        "## Runtimes",
        "",
        "`model.onnx` is made of plain operators of an old opset and resizes by matrix products, which runtimes compute",
        "alike in float32 (ONNX's own Resize they do not). With opset 18 ONNX Runtime 1.15 is the oldest that was seen to run it.",
        "OpenVINO needs `INFERENCE_PRECISION_HINT=f32`: on some CPUs it computes in bfloat16 unless told otherwise. Runtimes",
        "that are not named below (TensorRT by itself, CoreML, those of phones) were not tried: compare some answers with",
        "ONNX Runtime's in float32 before you turn half precision on. What was checked on the machine that made this card:",
        "",
    ]
    if parity is None:
        return "\n".join([*lines, "nothing; run check_parity, then report again."])
    lines += ["| runtime | precision | verdict |", "| --- | --- | --- |"]
    for runtime, cells in parity.runtimes.items():
        for precision, cell in cells.items():
            lines.append(f"| {runtime} | {precision} | {cell.verdict}{f': {cell.reason}' if cell.reason else ''} |")
    return "\n".join(lines)


def _licence(sidecar: Mapping[str, Any]) -> str:
    weights = sidecar["weights"]
    kind = "random" if weights["init"] == "random" else (weights["source"] or {}).get("kind")
    return LICENCES.get(str(kind), UNKNOWN_LICENCE)
