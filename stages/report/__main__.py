"""The report stage: report.html, one file that opens offline, its figures, and MODEL_CARD.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.report import figures
from stages.report.card import model_card
from stages.report.page import render
from stages.report.parity import read_parity
from stages.report.runs import Run, read_needed_json, read_run
from stages.report.summary import summarize
from stages.report.tables import facts_of, flatten, read_sweeps
from stages.shared import artifacts, cli
from stages.shared.dataset import load_manifest, load_test_pixels
from stages.shared.files import read_json, write_json, write_text
from stages.shared.params import load_params

FIGURES = artifacts.ROOT / "figures"
SWEEPS = artifacts.ROOT / "sweeps"


def main() -> None:
    params = load_params()
    runs = [read_run(recipe) for recipe in params.train]
    page = render(
        title=f"{params.model.architecture}: {task(list(runs[0].tested['per_class']))}",
        comparison=read_needed_json(artifacts.COMPARISON, "compare"),
        runs=runs,
        figures=draw_figures(FIGURES, runs),
        exported=artifacts.selected_recipe(params.export.recipe),
        parity=read_parity(artifacts.PARITY),
        is_drawn=params.dataset.source == "synthetic",
        sweeps=read_sweeps(SWEEPS),
        inspection=read_fragment(artifacts.INSPECTION / "fragment.html"),
        recent=read_fragment(artifacts.MONITOR / "fragment.html"),
        provenance=provenance(runs, params.model_dump(mode="json")),
    )
    write_text(artifacts.REPORT, page)
    write_json(artifacts.METRICS, summarize(runs, artifacts.PARITY))
    write_text(artifacts.MODEL_CARD, card(artifacts.selected_recipe(params.export.recipe)))
    print(f"report: {artifacts.REPORT} ({len(page) / 2**20:.1f} MiB)", flush=True)


def read_fragment(path: Path) -> Markup:
    """A stage's part of the page, a section that has escaped its own strings; empty where the stage was not run."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return Markup(text if "<section" in text else "")


def task(class_names: Sequence[str]) -> str:
    return " or ".join(class_names) if len(class_names) <= 4 else f"{len(class_names)} classes"


def draw_figures(folder: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Name -> SVG for the page; `confusion` maps each recipe to its own. None where no recipe has a curve."""
    histories = {run.recipe: run.history for run in runs}
    curves, areas = {run.recipe: run.roc for run in runs}, {run.recipe: run.tested["roc_auc"] for run in runs}
    return {
        "loss": figures.draw_learning_curve(folder, "train_loss", "training loss", histories),
        "accuracy": figures.draw_learning_curve(folder, "train_accuracy", "training accuracy", histories),
        "roc": figures.draw_roc(folder, curves, areas) if any(curves.values()) else None,
        "calibration": figures.draw_calibration(folder, {run.recipe: run.calibration for run in runs}),
        "confusion": {
            run.recipe: figures.draw_confusion(folder, run.recipe, run.predictions, list(run.tested["per_class"]))
            for run in runs
        },
    }


def provenance(runs: Sequence[Run], params: dict[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Titled lists of facts; a file that an experiment does not have is left out."""
    manifest_keys = ("digest", "class_names", "transform", "max_side", "train")
    groups = [
        ("Data set", facts_of(artifacts.SOURCE_DATASET / "source.json")),
        ("Prepared data", facts_of(artifacts.MANIFEST, manifest_keys) + facts_of(artifacts.PREPROCESS_REPORT)),
        (
            "Source weights",
            facts_of(artifacts.SOURCE_MODEL / "source.json") + facts_of(artifacts.PRETRAIN / "summary.json"),
        ),
        *((f"Training: {run.recipe}", flatten(run.trained)) for run in runs),
        *((f"Evaluation: {run.recipe}", flatten(without(run.tested, "per_class"))) for run in runs),
        ("Export", facts_of(artifacts.EXPORT / "export.json")),
        ("params.yaml", flatten(params)),
    ]
    return [(title, facts) for title, facts in groups if facts]


def card(recipe: str) -> str:
    manifest = load_manifest(artifacts.MANIFEST)
    prepared = read_json(artifacts.PREPROCESS_REPORT) if artifacts.PREPROCESS_REPORT.exists() else {}
    return model_card(
        read_needed_json(artifacts.EXPORT / "export.json", "export"),
        artifacts.evaluate_dir(recipe),
        read_parity(artifacts.PARITY),
        num_train=len(manifest.train),
        num_test=len(load_test_pixels(artifacts.TEST_SPLIT)),
        fixes=prepared.get("fixes", {}),
    )


def without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


if __name__ == "__main__":
    cli.run(main)
