"""The probe against tasks of known truth."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from stages.shared.calibration import log_loss
from stages.shared.probe import STRENGTHS, Probe, fit_probe


def drawn(num_images: int, num_classes: int, d: int = 8, signal: float = 2.0, seed: int = 0) -> dict[str, Any]:
    """Features around one centre a class, at scales of 0.1 to 10, their mirror images, and five folds."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_images, dtype=np.int64) % num_classes
    centres, scales = np.random.default_rng(9).normal(size=(num_classes, d)), np.logspace(-1, 1, d)
    crop, mirror = (
        ((generator.normal(size=(num_images, d)) + signal * centres[labels]) * scales + 3).astype(np.float32)
        for _ in range(2)
    )
    folds = np.arange(num_images, dtype=np.int64) // num_classes % 5
    return {"crop": crop, "mirror": mirror, "labels": labels, "folds": folds, "num_classes": num_classes}


def fit(
    crop: np.ndarray, mirror: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int, **options: Any
) -> Probe:
    return fit_probe([crop, mirror], labels, folds, num_classes, **options)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_a_probe_approaches_the_best_classifier_there_is(num_classes):
    probe, new = fit(**drawn(400, num_classes)), drawn(5000, num_classes, seed=1)
    centres, scales = np.random.default_rng(9).normal(size=(num_classes, 8)), np.logspace(-1, 1, 8)
    best = ((new["crop"] - 3) / scales) @ (2 * centres).T - 2 * (centres**2).sum(axis=1)  # Bayes' rule, equal variances
    own = probe.head.logits(new["crop"])
    hits = [(logits.argmax(axis=1) == new["labels"]).mean() for logits in (best, own)]
    assert hits[0] - 0.02 < hits[1]
    assert log_loss(own, new["labels"]) < log_loss(best, new["labels"]) + 0.05


def test_out_of_fold_logits_foretell_new_images():
    """Their log-loss on features without any signal is chance's; the fitted images' own would be far lower."""
    task = drawn(100, 2, d=300, signal=0.0)
    probe = fit(**task)
    assert probe.loss == pytest.approx(np.log(2), abs=0.03)
    assert probe.strength == STRENGTHS[0]
    learnable = fit(**drawn(300, 3, signal=0.6))
    new = drawn(5000, 3, signal=0.6, seed=1)
    assert learnable.loss == pytest.approx(log_loss(learnable.head.logits(new["crop"]), new["labels"]), rel=0.12)


def test_an_image_does_not_touch_its_own_logits_nor_does_its_mirror(monkeypatch):
    monkeypatch.setattr("stages.shared.probe.STRENGTHS", (0.01,))
    task = drawn(60, 2)
    changed = {**task, "labels": task["labels"].copy(), "mirror": task["mirror"].copy()}
    changed["labels"][0] = 1
    changed["mirror"][0] = 100
    before, after = fit(**task), fit(**changed)
    same_fold = task["folds"] == task["folds"][0]
    np.testing.assert_array_equal(before.logits[same_fold], after.logits[same_fold])
    np.testing.assert_array_equal(before.fold_heads[0].logits(task["crop"][same_fold]), before.logits[same_fold])
    assert np.abs(before.logits[~same_fold] - after.logits[~same_fold]).max() > 0.01


def test_images_left_out_take_no_part_and_are_judged_by_the_head():
    task = drawn(80, 2)
    left_out = np.arange(80) >= 60
    task["labels"][left_out] = 1 - task["labels"][left_out]
    task["folds"][left_out] = -1
    probe = fit(**task)
    alone = fit(**{name: value if name == "num_classes" else value[~left_out] for name, value in task.items()})
    np.testing.assert_array_equal(probe.head.weight, alone.head.weight)
    np.testing.assert_allclose(probe.logits[left_out], probe.head.logits(task["crop"][left_out]), rtol=1e-4, atol=1e-4)
    assert (probe.logits[left_out].argmax(axis=1) != task["labels"][left_out]).mean() > 0.8


def test_balanced_lets_the_rare_class_be_heard():
    task = drawn(330, 2, signal=0.5)
    rare = np.flatnonzero(task["labels"] == 1)
    few = {
        name: value if name == "num_classes" else np.delete(value, rare[15:], axis=0) for name, value in task.items()
    }
    new = drawn(4000, 2, signal=0.5, seed=1)

    def recalls(balanced: bool) -> list[float]:
        predicted = fit(**few, balanced=balanced).head.logits(new["crop"]).argmax(axis=1)
        return [float((predicted[new["labels"] == label] == label).mean()) for label in (0, 1)]

    assert np.mean(recalls(balanced=True)) > np.mean(recalls(balanced=False)) + 0.05
    assert recalls(balanced=True)[1] > recalls(balanced=False)[1] + 0.2


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_class_with_one_image_gets_a_small_finite_chance_where_it_is_not_seen(num_classes):
    task = drawn(40, num_classes)
    alone = np.flatnonzero(task["labels"] == num_classes - 1)
    task = {
        name: value if name == "num_classes" else np.delete(value, alone[1:], axis=0) for name, value in task.items()
    }
    probe = fit(**task)
    (row,) = np.flatnonzero(task["labels"] == num_classes - 1)
    assert 0 < special.softmax(probe.logits[row])[num_classes - 1] < 1 / 10
    assert np.isfinite(probe.head.weight).all()


def test_more_views_of_each_image_make_a_better_head():
    """Each view has noise of its own."""
    worth = []
    for num_views in (1, 4):
        seen, new = [drawn(30, 2, d=40, signal=0.4, seed=seed) for seed in range(num_views)], drawn(5000, 2, 40, 0.4, 9)
        views = [task["crop"] for task in seen]
        head = fit_probe(views, seen[0]["labels"], seen[0]["folds"], 2).head
        worth.append(log_loss(head.logits(new["crop"]), new["labels"]))
    assert worth[1] < worth[0] - 0.03


def test_a_feature_that_hardly_varies_gets_no_larger_weight_than_others():
    """Fine-tuning starts from this head: a weight of a hundred would throw the network's own weights about."""
    task = drawn(60, 2)
    scales = np.array([1.0] * 7 + [0.01], dtype=np.float32) / np.logspace(-1, 1, 8, dtype=np.float32)
    weight = fit(**task | {name: task[name] * scales for name in ("crop", "mirror")}).head.weight
    assert np.abs(weight[:, 7]).max() < 3 * np.abs(weight[:, :7]).max()


def test_two_fits_are_equal():
    first, second = (fit(**drawn(60, 3)) for _ in range(2))
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.head.weight, second.head.weight)


def test_too_few_folds_or_classes_are_refused():
    task = drawn(20, 2)
    with pytest.raises(ValueError, match="at least two folds; its 20 are in 1"):
        fit(**{**task, "folds": np.zeros(20, dtype=np.int64)})
    with pytest.raises(ValueError, match="at least two classes"):
        fit(**{**task, "labels": np.zeros(20, dtype=np.int64)})


def test_a_fold_s_head_is_the_library_s_fit_of_the_other_folds_strength_after_strength():
    task = drawn(90, 3, d=32, signal=0.5)
    probe = fit(**task)
    for fold, head in probe.fold_heads.items():
        rows = task["folds"] != fold
        features, labels = np.concatenate([task["crop"][rows], task["mirror"][rows]]), np.tile(task["labels"][rows], 2)
        mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
        scale = np.sqrt(std * np.sqrt(np.mean(std**2)))
        model = LogisticRegression(warm_start=True, max_iter=1000, tol=1e-3)
        for strength in STRENGTHS[: STRENGTHS.index(probe.strength) + 1]:
            model.set_params(C=strength).fit((features - mean) / scale, labels)
        np.testing.assert_array_equal(head.weight, (model.coef_ / scale).astype(np.float32))


def test_a_probe_takes_no_more_memory_for_more_folds(monkeypatch):
    """In multiples of the features: of twelve folds, kept side by side, the standardised ones were 22."""
    monkeypatch.setattr("stages.shared.probe.STRENGTHS", STRENGTHS[:2])
    task = drawn(600, 2, d=256)

    def peak(num_folds: int) -> float:
        tracemalloc.start()
        fit(**{**task, "folds": np.arange(600) // 2 % num_folds})
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / task["crop"].nbytes

    assert peak(12) < peak(2) + 1 < 7
