"""Read a search space, a YAML file: which keys vary, between what, on which budgets."""

import hashlib
import math
import re
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows import named_file
from flows.overrides import Settings

FOLDER = Path(__file__).parent  # of the spaces that come with the project


class Range(BaseModel):
    """Numbers from low to high, whole ones where both ends are."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def is_a_range(self) -> "Range":
        if not self.low < self.high or not all(map(math.isfinite, (self.low, self.high))):
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, it is {self.low}")
        return self


class Space(BaseModel):
    """A search's YAML file. In its keys `recipe.` stands for `train.<recipe>.`"""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    recipe: str
    settings: Settings = {}  # of every trial
    search: Annotated[dict[str, Range | Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    rungs: Annotated[list[Settings], Field(min_length=1)]
    reduction: Annotated[int, Field(ge=2)] = 3  # the best 1 / reduction of a rung's trials go on to the next
    score: Annotated[str, Field(pattern=r"^validation_")] = "validation_loss"

    @property
    def digest(self) -> str:
        """Changes with everything that makes trials of two searches different things."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return "minimize" if self.score.endswith("loss") else "maximize"

    def settings_of(self, chosen: Settings, rung: int) -> Settings:
        """Full keys of params.yaml for a trial's values at a rung."""
        values = {**self.settings, **chosen, **self.rungs[rung]}
        return {self.full_key(key): value for key, value in values.items()}

    def full_key(self, key: str) -> str:
        return re.sub(r"^recipe\.", f"train.{self.recipe}.", key)

    def own_values(self, params: Mapping[str, Any]) -> Settings | None:
        """What is searched as `params` has it; None where a value is none of those that may be tried."""
        own = {key: reduce(getitem, self.full_key(key).split("."), params) for key in self.search}
        return own if all(_may_be(own[key], allowed) for key, allowed in self.search.items()) else None

    @property
    def num_settings(self) -> float:
        """The number of settings that may be tried; infinite with a range."""
        return math.prod(math.inf if isinstance(allowed, Range) else len(allowed) for allowed in self.search.values())

    def corners(self) -> list[Settings]:
        """Settings that hold each value, and both ends of each range, at least once."""
        ends = {key: [r.low, r.high] if isinstance(r, Range) else r for key, r in self.search.items()}
        most = max(map(len, ends.values()))
        return [{key: values[i % len(values)] for key, values in ends.items()} for i in range(most)]


def _may_be(value: Any, allowed: Range | list[Any]) -> bool:
    if isinstance(allowed, Range):
        return isinstance(value, int | float) and allowed.low <= value <= allowed.high
    return value in allowed


def load_space(name: str) -> Space:
    """A space that comes with the project, by its name, or any YAML file. Raises ValueError naming what is wrong in it."""
    return named_file.load(Space, name, FOLDER, "search space")
