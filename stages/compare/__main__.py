"""Compare the recipes: comparison.json, .md and .png, and the table on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.compare.paired import paired_difference, read_correct
from stages.compare.picture import draw_comparison
from stages.compare.published import is_published_data, published_row
from stages.shared import artifacts, cli
from stages.shared.files import read_json, replacing, write_json, write_text
from stages.shared.params import load_params

VALIDATION = tuple(f"validation_{score}{end}" for score in ("accuracy", "loss") for end in ("", "_low", "_high"))
HEADINGS = ("recipe", "train loss", "train acc", "val loss", "val acc (95 %)", "test loss", "test acc (95 %)", "ECE",
            "examples/s", "seconds", "device")  # fmt: skip


def main() -> None:
    params = load_params()
    same_data = is_published_data(params.dataset.source)

    entries = [entry_of(recipe, same_data=same_data) for recipe in params.train]
    for entry in entries[1:]:
        entry["against_first"] = against(entry["recipe"], entries[0]["recipe"])
    table = markdown_table(entries)

    write_json(artifacts.COMPARISON, entries)
    write_text(artifacts.COMPARISON.with_suffix(".md"), f"# Comparison\n\n{table}\n\n{notes(entries)}\n")
    with replacing(artifacts.COMPARISON.with_suffix(".png")) as part:
        draw_comparison(part, entries, {entry["recipe"]: history_path(entry["recipe"]) for entry in entries})
    print(table, flush=True)


def entry_of(recipe: str, *, same_data: bool) -> dict[str, Any]:
    """One entry of comparison.json: what training and evaluation measured, and the published row."""
    trained = read_metrics(artifacts.train_dir(recipe) / "metrics.json", f"train {recipe}")
    tested = read_metrics(artifacts.evaluate_dir(recipe) / "metrics.json", f"evaluate {recipe}")
    return {
        "recipe": recipe,
        "train_loss": trained["train_loss"],
        "train_accuracy": trained["train_accuracy"],
        # Of training images that the recipe was not trained on; null where the recipe is not validated.
        **{key: trained.get(key) for key in VALIDATION},
        "test_loss": tested["test_loss"],
        "test_accuracy": tested["test_accuracy"],
        "test_accuracy_low": tested["test_accuracy_low"],
        "test_accuracy_high": tested["test_accuracy_high"],
        "test_ece": tested["ece"],
        "num_test_images": tested["num_images"],
        "before_fixes": tested.get("before_fixes"),  # the score by the test labels before the fix list changed some
        "examples_per_second": trained["examples_per_second"],
        "seconds": trained["seconds"],
        "device": trained["device"],
        "precision": trained["precision"],
        "published": published_row(recipe, same_data=same_data),
        "against_first": None,
    }


def read_metrics(path: Path, stage: str) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run {stage}") from None


def history_path(recipe: str) -> Path:
    return artifacts.train_dir(recipe) / "history.csv"


def against(recipe: str, first: str) -> dict[str, Any]:
    """`recipe` against `first`, image by image."""
    correct, reference = (read_correct(artifacts.evaluate_dir(name) / "predictions.csv") for name in (recipe, first))
    return {"recipe": first, **paired_difference(correct, reference)}


def markdown_table(entries: Iterable[Mapping[str, Any]]) -> str:
    """One row a recipe, each followed by its published row; columns are padded to line up on a terminal."""
    rows = [list(HEADINGS)]
    for entry in entries:
        rows.append(_own_row(entry))
        if entry["published"]:
            rows.append(_published_row(entry["published"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    text.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(row)} |" for row in text)


def _own_row(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"**{entry['recipe']}**",
        _number(entry["train_loss"]),
        _number(entry["train_accuracy"]),
        _number(entry["validation_loss"]),
        _with_interval(entry, "validation_accuracy"),
        _number(entry["test_loss"]),
        _with_interval(entry, "test_accuracy"),
        _number(entry["test_ece"]),
        _number(entry["examples_per_second"], digits=1),
        f"{entry['seconds']:.1f}",
        f"{entry['device']}, {entry['precision']}".replace("|", "/"),
    ]


def _published_row(row: Mapping[str, Any]) -> list[str]:
    train = [_number(row["train_loss"]), _number(row["train_accuracy"])]
    rate = f"{row['examples_per_second']:.1f}"
    return [row["caption"], *train, "", "", "", _number(row["test_accuracy"]), "", rate, "", row["device"]]


def _number(value: float | None, digits: int = 3) -> str:
    """A dash where there is nothing to measure, as the training loss of a recipe of no epochs."""
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(entry: Mapping[str, Any], key: str) -> str:
    value, low, high = (entry[f"{key}{end}"] for end in ("", "_low", "_high"))
    return _number(value) if low is None else f"{_number(value)} ({_number(low)} to {_number(high)})"


def notes(entries: Sequence[Mapping[str, Any]]) -> str:
    """Explain the table's numbers, and each recipe's paired difference to the first."""
    lines = [
        "Val: the recipe on training images that it was not trained on (validation); what was chosen, was chosen by it. "
        f"Test: {entries[0]['num_test_images']} images, opened once, when all was chosen. Test loss and val loss are log-loss, "
        "ECE is the calibration error on the test images; 95 % intervals of accuracy by Wilson. Train loss and accuracy are "
        "running averages over the last epoch, as in the book; examples/s is the median epoch's, cropping included (d2l's timer leaves loading out)."
    ]
    lines += [before_fixes(entry) for entry in entries if entry["before_fixes"]]
    for entry in entries[1:]:
        pair = entry["against_first"]
        lines.append(
            f"**{entry['recipe']} minus {pair['recipe']}**, on the same {pair['num_images']} test images: "
            f"{pair['difference']:+.3f} accuracy, 95 % interval {pair['difference_low']:+.3f} to "
            f"{pair['difference_high']:+.3f} (paired; Agresti and Min), exact McNemar p = {pair['p_value']:.2g}."
        )
    return "\n\n".join(lines)


def before_fixes(entry: Mapping[str, Any]) -> str:
    """Say what a recipe's answers score by the test labels as they were."""
    before = entry["before_fixes"]
    return (
        f"**{entry['recipe']} before the fix list**, which changes the label of {before['num_relabelled']} test images: accuracy "
        f"{_with_interval(before, 'test_accuracy')} on {before['num_images']} images, loss {before['test_loss']:.3f}."
    )


if __name__ == "__main__":
    cli.run(main)
