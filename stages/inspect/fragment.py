"""Show the inspection as a part of the report: pictures in pairs, labels to look at, odd pictures, and a map of all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sklearn.decomposition import PCA

from stages.inspect.structure import unit_rows
from stages.shared.data_uri import data_uri

SHOWN = 12  # pictures of each kind
POINTS = 2000  # of the map
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#555555")  # Okabe and Ito's
TEST_COLOR = "#bbbbbb"  # the test images' labels are not looked at


def render(
    report: Mapping[str, Any],
    crops: Mapping[str, np.ndarray],
    features: np.ndarray,
    labels: np.ndarray,
    paths: Sequence[str],
) -> str:
    """HTML without a head. `crops` has each shown file's uint8 picture; `features` (N, d) are those of `paths`, `labels` (n,)."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    names = list(report["balance"])
    return environment.get_template("fragment.html.j2").render(
        report=report,
        leaks=[
            (leak, data_uri(crops[leak["train"]]), data_uri(crops[leak["test"]])) for leak in report["leaks"][:SHOWN]
        ],
        duplicates=[(pair, *(data_uri(crops[file]) for file in pair["files"])) for pair in shown_duplicates(report)],
        issues=[(issue, data_uri(crops[issue["file"]])) for issue in report["label_issues"][:SHOWN]],
        odd=[(entry, data_uri(crops[entry["file"]])) for entry in report["odd"][:SHOWN]],
        points=map_points(features, labels, paths),
        legend={name: COLORS[row % len(COLORS)] for row, name in enumerate(names)} | {"test": TEST_COLOR},
    )


def shown_files(report: Mapping[str, Any]) -> set[str]:
    """The files whose pictures `render` needs."""
    pairs = [leak[split] for leak in report["leaks"][:SHOWN] for split in ("train", "test")]
    pairs += [file for pair in shown_duplicates(report) for file in pair["files"]]
    return {*pairs, *(entry["file"] for kind in ("label_issues", "odd") for entry in report[kind][:SHOWN])}


def shown_duplicates(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The closest pairs within a split, training's first."""
    return [*report["duplicates"]["train"], *report["duplicates"]["test"]][:SHOWN]


def map_points(features: np.ndarray, labels: np.ndarray, paths: Sequence[str]) -> list[tuple[float, float, str, str]]:
    """x, y in 0 to 100, colour and name of at most POINTS images: the two main components of their features at unit length.

    A few pictures with features thirty times as long as the others' would press all others into a line.
    Not t-SNE or UMAP: their clusters and the gaps between them depend on a perplexity that would have to be chosen, and one picture
    more moves all others. Here a test split that lies beside the training split is one that differs from it.
    """
    if len(features) < 3:
        return []
    places = PCA(2, svd_solver="randomized", random_state=0).fit_transform(unit_rows(features))
    low, high = places.min(axis=0), places.max(axis=0)
    places = 100 * (places - low) / np.maximum(high - low, 1e-9)
    rows = np.unique(np.linspace(0, len(paths) - 1, min(POINTS, len(paths))).round().astype(int))
    colors = [COLORS[labels[row] % len(COLORS)] if row < len(labels) else TEST_COLOR for row in rows]
    return [
        (round(float(places[row, 0]), 1), round(float(places[row, 1]), 1), color, paths[row])
        for row, color in zip(rows, colors, strict=True)
    ]
