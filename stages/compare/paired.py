"""Two recipes on the same test images: how much better is one, and could that be chance?

The images on which both are right or both wrong say nothing about the difference, so its interval is narrower than the
two recipes' own intervals suggest.
"""

import csv
import math
from pathlib import Path
from typing import Any

from scipy import stats


def read_correct(path: Path) -> dict[str, bool]:
    """predictions.csv as image path -> predicted correctly."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["correct"] == "1" for row in csv.DictReader(file)}


def paired_difference(correct: dict[str, bool], reference: dict[str, bool]) -> dict[str, Any]:
    """Top-1 of `correct` minus top-1 of `reference`, with a 95 % interval and McNemar's exact p-value.

    The interval is Agresti and Min's (2005): Wald's, after half an image is added to each of the four cells.
    Raises ValueError when the two did not classify the same images.
    """
    if correct.keys() != reference.keys():
        raise ValueError("the recipes were evaluated on different test images; run evaluate again for each")
    num_images = len(correct)
    gained = sum(correct[path] and not reference[path] for path in correct)
    lost = sum(reference[path] and not correct[path] for path in correct)
    low, high = _agresti_min(gained, lost, num_images)
    return {
        "difference": (gained - lost) / num_images,
        "difference_low": low,
        "difference_high": high,
        "p_value": float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        "num_images": num_images,
    }


def _agresti_min(gained: int, lost: int, num_images: int) -> tuple[float, float]:
    more, fewer, total = gained + 0.5, lost + 0.5, num_images + 2
    center = (more - fewer) / total
    margin = 1.959964 * math.sqrt((more + fewer) / total - center**2) / math.sqrt(total)
    return max(-1.0, center - margin), min(1.0, center + margin)
