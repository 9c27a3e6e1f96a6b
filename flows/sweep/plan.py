"""Read a sweep, a YAML file of settings, and unfold it into the DVC experiments that it takes."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows import named_file
from flows.overrides import Settings, as_override, plain
from flows.sweep import backbones
from masking import masked

FOLDER = Path(__file__).parent  # of the sweeps that come with the project
# In a sweep's settings, `recipe.` stands for `train.<the point's recipe>.`


Score = Annotated[str, Field(pattern=r"^(validation|train)_|^(seconds|examples_per_second)$")]  # of train: none of test


class Finals(BaseModel):
    """A second round for the best points of the first, with settings that would be too dear for all."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keep: Annotated[int, Field(ge=1)]  # points
    settings: Settings = {}
    target: str = "train"  # with what it needs; `train` is the point's recipe


class Sweep(BaseModel):
    """A sweep's YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    recipes: Annotated[list[str], Field(min_length=1)] = ["finetune"]
    settings: Settings = {}  # of every point
    points: Annotated[list[Settings], Field(min_length=1)] = [
        {}
    ]  # each may have a `name`, and a `target` stage of its own
    weights: list[str] = []  # folders: a point for each weights file in them, named after it
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}  # every combination, for every recipe and point
    x: str  # the picture's axis: `name`, `recipe`, or a key; a point without it is a line across
    series: str | None = None  # what tells the picture's lines apart
    scores: Annotated[list[Score], Field(min_length=1)] = ["validation_loss", "validation_accuracy"]  # the first ranks
    finals: Finals | None = None

    @model_validator(mode="after")
    def x_is_varied(self) -> "Sweep":
        if self.weights and self.points != [{}]:
            raise ValueError("give points or weights, not both")
        varied = {"name", "recipe", *self.grid, *(key for point in self.points for key in point)}
        if unknown := {self.x, self.series or self.x} - varied:
            raise ValueError(
                f"x or series is {', '.join(unknown)}, which the points do not set: {', '.join(sorted(varied))}"
            )
        return self


@dataclass(frozen=True)
class Experiment:
    """One point with one seed."""

    name: str  # of the DVC experiment
    point: Settings  # what tells the point from the others: `name`, `recipe`, keys
    seed: int
    target: str  # the stage to run, with all it needs
    settings: Settings  # full keys of params.yaml
    scored: str  # the stage whose metrics it is ranked by

    @property
    def overrides(self) -> list[str]:
        """The settings as `dvc exp run --set-param` takes them."""
        return [as_override(key, value) for key, value in self.settings.items()]

    @property
    def metrics(self) -> str:
        return f"artifacts/{self.scored.replace('@', '/')}/metrics.json"


def load_sweep(name: str) -> Sweep:
    """A sweep that comes with the project, by its name, or any YAML file. Raises ValueError naming what is wrong in it."""
    return named_file.load(Sweep, name, FOLDER, "sweep")


def unfold(sweep: Sweep, num_seeds: int, settings: Mapping[str, Any]) -> list[Experiment]:
    """The sweep's experiments, point by point. `settings` go over the sweep's own, and under those of a point.

    A point with a target of its own trains nothing that has a seed: it takes no part in the grid and is measured once.
    Raises ValueError where two of them would have one name.
    """
    experiments = []
    points = backbones.points(sweep.weights) if sweep.weights else sweep.points
    for recipe, point in itertools.product(sweep.recipes, points):
        alone = "target" in point
        if alone and recipe != sweep.recipes[0]:
            continue
        target = point.get("target", f"train@{recipe}")
        chosen = {key: value for key, value in point.items() if key not in ("name", "target")}
        shown = {"name": point["name"]} if "name" in point else chosen
        for combination in [{}] if alone else _combinations(sweep.grid):
            named = {**({"recipe": recipe} if len(sweep.recipes) > 1 else {}), **shown, **combination}
            described = {key: masked(v) if isinstance(v, str) else v for key, v in named.items()}
            for seed in range(1 if alone else num_seeds):
                values = {**sweep.settings, **settings, **chosen, **combination, "recipe.seed": seed}
                full = {_full_key(key, recipe): value for key, value in values.items()}
                experiments.append(Experiment(_name(sweep, described, seed), described, seed, target, full, target))
    counts = Counter(experiment.name for experiment in experiments)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{sweep.name}: two points would both be {', '.join(sorted(twice))}; give each a `name`")
    return experiments


def finalists(finals: Finals, best: Iterable[Experiment]) -> list[Experiment]:
    """The second round's experiments for the seeds of the points that the first has found best."""
    experiments = []
    for first in best:
        recipe = first.scored.partition("@")[2]
        settings = {**first.settings, **{_full_key(key, recipe): value for key, value in finals.settings.items()}}
        target = first.scored if finals.target == "train" else finals.target
        experiments.append(replace(first, name=f"{first.name}-final", target=target, settings=settings))
    return experiments


def tested(winner: Iterable[Experiment]) -> list[Experiment]:
    """The winner's experiments with their evaluation on the test split, which no other point gets."""
    return [
        replace(e, name=f"{e.name}-tested", target=f"evaluate@{recipe}", scored=f"evaluate@{recipe}")
        for e in winner
        if (recipe := e.scored.partition("@")[2])
    ]


def _combinations(grid: Mapping[str, list[Any]]) -> list[Settings]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _full_key(key: str, recipe: str) -> str:
    return re.sub(r"^recipe\.", f"train.{recipe}.", key)


def _name(sweep: Sweep, described: Settings, seed: int) -> str:
    words = [re.sub(r"[^A-Za-z0-9.]+", "_", plain(value)).strip("_.") for value in described.values()]
    return "-".join([sweep.name, *filter(None, words), f"s{seed}"])
