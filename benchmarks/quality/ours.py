"""The pipeline's own recipes, by its own stages: train, with params.yaml's recipe, and the checkpoint that it leaves."""

from typing import Any

from ruamel.yaml import YAML
from torch import nn

from benchmarks.quality.tasks import PARAMS, Task, working_in
from stages.shared import artifacts
from stages.shared.checkpoint import load_checkpoint
from stages.shared.files import read_json
from stages.train import __main__ as train

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "book": ("finetune", {"validation": "none"}),
    "probe": ("tuned", {"epochs": 0}),
    "tuned": ("tuned", {}),
    "unweighted": ("tuned", {"class_weights": "none"}),
}


def train_ours(name: str, task: Task, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and what it came to."""
    return train_recipe(*RECIPES[name], task, seed)


def train_recipe(recipe: str, changes: dict[str, Any], task: Task, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The same for a recipe of params.yaml with `changes` of its keys."""
    with working_in(task.folder):
        values = YAML(typ="safe").load(task.folder / "params.yaml")
        own = YAML(typ="safe").load(PARAMS)["train"][recipe]
        values["seed"] = seed
        values["train"] = {recipe: {**own, **changes}}
        values["export"]["recipe"] = recipe
        YAML().dump(values, task.folder / "params.yaml")
        train.main(recipe)
        metrics = read_json(artifacts.train_dir(recipe) / "metrics.json")
        model, _ = load_checkpoint(artifacts.train_dir(recipe) / "checkpoint.safetensors")
    return model, {key: metrics[key] for key in ("result", "temperature", "validation_accuracy", "validation_loss")}


def feature_seconds(name: str, task: Task) -> float:
    """CPU seconds of work that the recipe needs and that was done before."""
    return task.feature_seconds if name in ("probe", "tuned", "unweighted") else 0.0
