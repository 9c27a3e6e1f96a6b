"""The recipe that is exported is chosen on held-out training images, and its intervals mean what they say."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages import select
from stages.select import HeldOut, choose, difference, rank
from stages.shared import artifacts
from stages.shared.held_out import Validation, save_validation
from tests.experiment import write_params


def held_out(losses: np.ndarray, labels: np.ndarray | None = None, first: int = 0) -> HeldOut:
    labels = np.arange(len(losses)) % 2 if labels is None else labels
    return HeldOut(np.arange(first, first + len(losses)), labels, np.asarray(losses, float))


def drawn(mean: float, num: int = 200, seed: int = 0) -> np.ndarray:
    return mean * np.random.default_rng(seed).exponential(size=num)


def test_the_lowest_log_loss_is_taken_and_by_how_much_is_said():
    candidates = rank(
        {"finetune": held_out(drawn(0.6)), "tuned": held_out(drawn(0.3)), "scratch": held_out(drawn(0.9))}
    )
    assert [candidate.recipe for candidate in candidates] == ["tuned", "finetune", "scratch"]
    recipe, reason = choose("auto", candidates)
    assert recipe == "tuned"
    assert "less than finetune, 95 % +" in reason
    assert "chance" not in reason


def test_a_difference_within_its_interval_is_remarked():
    candidates = rank({"a": held_out(drawn(0.50, seed=1)), "b": held_out(drawn(0.49, seed=2))})
    assert "within its interval, so that it may be chance" in choose("auto", candidates)[1]


def test_recipes_are_judged_on_the_images_that_all_held_out():
    """On its own images alone `easy` would win: they are the easy ones."""
    hard_then_easy = np.repeat([1.0, 0.1], 100)
    candidates = rank({"all": held_out(hard_then_easy), "easy": held_out(np.full(100, 0.2), first=100)})
    assert [(candidate.recipe, candidate.num_images) for candidate in candidates] == [("all", 100), ("easy", 100)]


def test_every_class_counts_alike():
    labels = np.repeat([0, 1], [90, 10])
    candidates = rank({
        "for_the_many": held_out(np.where(labels == 0, 0.1, 2.0), labels),
        "for_both": held_out(np.where(labels == 0, 0.4, 0.4), labels),
    })  # fmt: skip
    assert candidates[0].recipe == "for_both"
    assert candidates[0].loss == pytest.approx(0.4)


def test_a_named_recipe_is_taken_whatever_its_loss():
    candidates = rank({"finetune": held_out(drawn(0.6)), "tuned": held_out(drawn(0.3))})
    assert choose("finetune", candidates) == ("finetune", "named by export.recipe")


def test_recipes_validated_on_different_images_are_not_ranked_but_one_can_be_named():
    candidates = rank({"a": held_out(drawn(1.0)), "b": held_out(drawn(1.0), first=500)})
    assert choose("a", candidates) == ("a", "named by export.recipe")
    with pytest.raises(ValueError, match="give all the same train_fraction and seed, or name the recipe"):
        choose("auto", candidates)


def test_auto_without_a_validated_recipe_says_what_to_do():
    with pytest.raises(ValueError, match="no recipes were validated on the same images: set validation: holdout"):
        choose("auto", rank({}))


def test_nominal_95_percent_intervals_cover_93_to_97_percent():
    """500 resamples of a task of known truth: two recipes, the second worse by 0.1 nats on average, 10 to 1 classes."""
    generator, truth, covered = np.random.default_rng(0), 0.1, 0
    labels = np.repeat([0, 1], [300, 60])
    for _ in range(500):
        shared = generator.exponential(size=len(labels)) * np.array([0.3, 0.9])[labels]
        first, second = (shared + 0.3 * generator.exponential(size=len(labels)) + worse for worse in (0.0, truth))
        *_, behind = rank({"first": held_out(first, labels), "second": held_out(second, labels)})
        low, high = (behind.behind_low, behind.behind_high) if behind.recipe == "second" else (-np.inf, np.inf)
        covered += low <= truth <= high
    assert 0.93 <= covered / 500 <= 0.97


def test_an_interval_of_one_image_has_no_width():
    assert difference(np.array([0.2]), np.ones(1)) == (0.2, 0.2, 0.2)


def write_validation(recipe: str, skill: float, num: int = 60) -> None:
    labels = np.arange(num) % 3
    logits = np.random.default_rng(len(recipe)).normal(size=(num, 3)) + skill * np.eye(3)[labels]
    order = np.random.default_rng(0).permutation(num)  # as folds come: not in the split's order
    validation = Validation(order, labels[order], logits[order].astype(np.float32))
    save_validation(artifacts.train_dir(recipe) / "validation.npz", validation)


def test_the_stage_writes_the_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"export.recipe": "auto"}, whole=True)
    for recipe, skill in {"finetune": 1.0, "scratch": 0.2, "tuned": 3.0}.items():
        write_validation(recipe, skill)
    select.main()
    written = json.loads(artifacts.SELECTION.read_text())
    assert written["recipe"] == "tuned"
    assert [candidate["recipe"] for candidate in written["candidates"]] == ["tuned", "finetune", "scratch"]
    assert written["candidates"][0]["num_images"] == 60
