"""Fill in the page, every string escaped on its way."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(*, comparison: Sequence[Mapping[str, Any]], **content: Any) -> str:
    """Raises jinja2's UndefinedError where the template names something that `content` has not."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "exact": exact, "verdict": verdict, "along": along, "points": points}
    environment.filters["decimals"] = decimals
    template = environment.get_template("template.html.j2")
    validated = any(entry.get("validation_loss") is not None for entry in comparison)
    return template.render(content, comparison=comparison, validated=validated, scale=lowest_tenth(comparison))


def cell(value: Any) -> str:
    """A table cell: numbers short, nothing as a dash."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return exact(value)


def exact(value: Any) -> str:
    """A fact, with all its digits."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def decimals(value: float | None, digits: int) -> str:
    """A number of so many decimals; a dash where nothing was measured, as the training loss of a recipe of no epochs."""
    return "–" if value is None else f"{value:.{digits}f}"


def verdict(value: Any) -> str:
    """The style of a verdict: only what passed looks like it."""
    text = str(value).lower()
    if text.startswith("pass"):
        return "pass"
    return "fail" if text.startswith("fail") else "muted"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def along(value: float, low: float) -> float:
    """Position of `value` between `low` and 1, in percent."""
    return round(100 * (value - low) / (1 - low), 2)


def lowest_tenth(comparison: Sequence[Mapping[str, Any]]) -> float:
    """The start of the scale on which all accuracies are drawn: a multiple of 0.1 below every one of them."""
    lows = [entry["test_accuracy_low"] for entry in comparison]
    lows += [entry["published"]["test_accuracy"] for entry in comparison if entry["published"]]
    return min(math.floor(min(lows) * 10 - 0.1) / 10, 0.9) if min(lows) > 0.1 else 0.0
