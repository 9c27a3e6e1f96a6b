"""Select the recipe that is exported: `python -m stages.select` writes selection.json and says why.

`export.recipe: auto` takes the recipe with the lowest log-loss on training images that it was not trained on; the test split
takes no part. Every class counts alike in it, so that a rare class is not paid for the frequent one's.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from stages.shared import artifacts, cli
from stages.shared.calibration import balanced_weights
from stages.shared.files import write_json
from stages.shared.held_out import Validation, load_validation
from stages.shared.params import load_params

AUTO = "auto"


@dataclass(frozen=True)
class HeldOut:
    """The losses of a recipe's models on images that they were not trained on."""

    rows: np.ndarray  # (n,) int64, of the training split, ascending
    labels: np.ndarray  # (n,) int64
    losses: np.ndarray  # (n,) float64, nats


@dataclass(frozen=True)
class Candidate:
    recipe: str
    loss: float  # mean over the classes' mean log-losses, nats, on the images that all candidates were judged on
    num_images: int
    behind: float  # its loss less the best one's, image by image
    behind_low: float  # 95 %
    behind_high: float


def main() -> None:
    params = load_params()
    held_out = {
        recipe: losses_of(load_validation(artifacts.train_dir(recipe) / "validation.npz")) for recipe in params.train
    }
    candidates = rank({recipe: seen for recipe, seen in held_out.items() if len(seen.rows)})

    recipe, reason = choose(params.export.recipe, candidates)
    print(f"{recipe}: {reason}", flush=True)
    write_json(artifacts.SELECTION, selection(recipe, reason, candidates))


def losses_of(validation: Validation) -> HeldOut:
    """The log-loss of each image, in the split's order."""
    log_probabilities = special.log_softmax(validation.logits.astype(np.float64), axis=1)
    losses, order = -log_probabilities[np.arange(len(validation.rows)), validation.labels], validation.rows.argsort()
    return HeldOut(validation.rows[order], validation.labels[order], losses[order])


def rank(held_out: Mapping[str, HeldOut]) -> list[Candidate]:
    """The recipes from the best on, judged on the images that each of them held out; none where there is no such image."""
    if not held_out:
        return []
    rows, labels = common_rows(held_out)
    if not len(rows):
        return []
    losses = {recipe: seen.losses[np.isin(seen.rows, rows)] for recipe, seen in held_out.items()}
    weights = balanced_weights(labels)
    means = {recipe: float(np.average(values, weights=weights)) for recipe, values in losses.items()}
    order = sorted(means, key=lambda recipe: means[recipe])
    return [
        Candidate(recipe, means[recipe], len(rows), *difference(losses[recipe] - losses[order[0]], weights))
        for recipe in order
    ]


def common_rows(held_out: Mapping[str, HeldOut]) -> tuple[np.ndarray, np.ndarray]:
    """The rows that all held out, and their labels."""
    first, *others = held_out.values()
    inside = np.ones(len(first.rows), dtype=bool)
    for other in others:
        inside &= np.isin(first.rows, other.rows)
    return first.rows[inside], first.labels[inside]


def difference(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """The weighted mean of `values` (n,) and its 95 % interval by Student's t; without width where n is 1."""
    mean = float(np.average(values, weights=weights))
    if len(values) < 2:
        return mean, mean, mean
    shares = weights / weights.sum()
    error = np.sqrt(len(values) / (len(values) - 1) * (shares**2 * (values - mean) ** 2).sum())
    half = float(stats.t.ppf(0.975, len(values) - 1) * error)
    return mean, mean - half, mean + half


def choose(wanted: str, candidates: list[Candidate]) -> tuple[str, str]:
    """The recipe, and the reason in words."""
    if wanted != AUTO:
        return wanted, "named by export.recipe"
    if not candidates:
        raise ValueError(
            "export.recipe is auto, but no recipes were validated on the same images: set validation: holdout or folds for "
            "one, give all the same train_fraction and seed, or name the recipe"
        )
    best, others = candidates[0], candidates[1:]
    scored = f"log-loss {best.loss:.3f} on {best.num_images} held-out training images"
    if not others:
        return best.recipe, f"the only recipe that was validated, {scored}"
    second = others[0]
    ahead = f"{second.behind:.3f} less than {second.recipe}, 95 % {second.behind_low:+.3f} to {second.behind_high:+.3f}"
    remark = "" if second.behind_low > 0 else "; within its interval, so that it may be chance"
    return best.recipe, f"the lowest {scored} ({ahead}{remark})"


def selection(recipe: str, reason: str, candidates: list[Candidate]) -> dict[str, Any]:
    return {"recipe": recipe, "reason": reason, "candidates": [asdict(candidate) for candidate in candidates]}


if __name__ == "__main__":
    cli.run(main)
