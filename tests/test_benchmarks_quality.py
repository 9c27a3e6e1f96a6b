"""The quality benchmark's sums: means over seeds, and differences over the tasks and seeds that both have run."""

from typing import Any

import numpy as np
import pytest

from benchmarks.quality.fine_tuning import stratified_holdout
from benchmarks.quality.table import compare_to_tuned, render, render_imbalance, summarize


def run(task: str, recipe: str, seed: int, accuracy: float) -> dict[str, Any]:
    others = {"macro_recall": accuracy, "log_loss": 1.0, "ece": 0.1, "cpu_seconds": 2.0 + seed, "wall_seconds": 9.0}
    facts = {"num_train": 20, "date": f"2026-11-2{6 - seed}"}
    return {"task": task, "recipe": recipe, "seed": seed, "accuracy": accuracy, **facts, **others}


RUNS = [
    run("a", "tuned", 0, 0.9), run("a", "tuned", 1, 0.8), run("b", "tuned", 0, 0.7),
    run("a", "book", 0, 0.7), run("a", "book", 1, 0.7), run("b", "book", 0, 0.3), run("c", "book", 0, 0.1),
]  # fmt: skip


def test_a_task_and_recipe_is_the_mean_of_its_seeds():
    rows = {(row["task"], row["recipe"]): row for row in summarize(RUNS)}
    assert rows["a", "tuned"]["accuracy"] == pytest.approx(0.85)
    assert (rows["a", "tuned"]["seeds"], rows["a", "tuned"]["cpu_seconds"]) == (2, 2.5)
    assert (rows["a", "tuned"]["oldest"], rows["b", "tuned"]["oldest"]) == ("2026-11-25", "2026-11-26")


def test_recipes_are_compared_on_what_both_have_run_and_every_task_counts_alike():
    (book,) = compare_to_tuned(RUNS)
    assert (book["recipe"], book["pairs"], book["fewest_seeds"], book["most_seeds"]) == ("book", 3, 1, 2)
    assert (book["error"], book["tuned_error"]) == pytest.approx(((0.3 + 0.7) / 2, (0.15 + 0.3) / 2))
    assert book["more"] == pytest.approx((0.15 + 0.4) / 2)
    assert book["more_low"] < book["more"] < book["more_high"]


def test_the_table_says_how_many_seeds_and_what_was_not_run():
    text = render(summarize(RUNS), compare_to_tuned(RUNS), {"device": "a CPU"})
    assert "| a | 20 | tuned | 2 | 0.850 |" in text
    assert "| book | 2 | 1 to 2 | 0.500 / 0.225 | 0.45 |" in text
    assert "Not run, for want of time: probe, fastai" in text


def test_uneven_classes_are_compared_with_and_without_weights():
    uneven = [{**run("a", name, 0, 0.6), "accuracy_as_trained": 0.9} for name in ("tuned", "unweighted")]
    assert "| a | none | 1 | 0.600 | 0.600 | 0.900 |" in render_imbalance(uneven)
    assert render_imbalance(RUNS) == ""


def test_a_holdout_has_images_of_each_class():
    labels = np.array([0] * 20 + [1] * 2)
    rows, out = stratified_holdout(labels, 0.2, seed=0)
    assert sorted([*rows.tolist(), *out.tolist()]) == list(range(22))
    assert np.bincount(labels[out.numpy()]).tolist() == [4, 1]
