"""The stages in the order of dvc.yaml's graph, read as YAML: a machine that has no DVC can run them too."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML


@dataclass(frozen=True)
class Stage:
    name: str  # as DVC has it, but for a matrix's: train@finetune
    words: tuple[str, ...]  # what follows `python -m`
    deps: tuple[str, ...]
    outs: tuple[str, ...]


def stages_in_order(pipeline: Path, params: Mapping[str, Any]) -> list[Stage]:
    """Every stage of dvc.yaml, one for each point of its matrix, behind all that it depends on."""
    stages = {stage.name: stage for stage in unfold(YAML(typ="safe").load(pipeline), params)}
    needs = {
        stage.name: [other.name for other in stages.values() if feeds(other.outs, stage.deps)]
        for stage in stages.values()
    }
    return [stages[name] for name in TopologicalSorter(needs).static_order()]


def unfold(pipeline: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Stage]:
    values = {**params, **{key: value for group in pipeline.get("vars", []) for key, value in group.items()}}
    for name, stage in pipeline["stages"].items():
        matrix = {key: list(resolve(axis, values)) for key, axis in stage.get("matrix", {}).items()}
        for point in product(*matrix.values()):
            item = dict(zip(matrix, point, strict=True))

            def text(template: str, scope: Mapping[str, Any] = {**values, "item": item}) -> str:
                return re.sub(r"\$\{([^}]+)\}", lambda found: str(look_up(found[1], scope)), template)

            outs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
            yield Stage(
                name="@".join([name, *map(str, point)]),
                words=tuple(text(stage["cmd"]).split(" -m ", 1)[1].split()),
                deps=tuple(text(path_of(dep)) for dep in stage.get("deps", [])),
                outs=tuple(text(path_of(out)) for out in outs),
            )


def resolve(axis: Any, values: Mapping[str, Any]) -> Any:
    """A matrix's axis: a list, or `${train}`, which runs over the keys of params.yaml's train."""
    return look_up(axis[2:-1], values) if isinstance(axis, str) else axis


def look_up(key: str, values: Mapping[str, Any]) -> Any:
    found: Any = values
    for name in key.strip().split("."):
        found = found[name]
    return found


def path_of(entry: Any) -> str:
    """A dep or an out, which DVC writes as its path or as {path: settings}."""
    return entry if isinstance(entry, str) else str(next(iter(entry)))


def feeds(outs: tuple[str, ...], deps: tuple[str, ...]) -> bool:
    """Does a dep lie in an out, or hold one?"""
    return any(
        PurePosixPath(dep).is_relative_to(out) or PurePosixPath(out).is_relative_to(dep) for dep in deps for out in outs
    )
