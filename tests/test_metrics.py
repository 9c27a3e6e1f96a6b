"""Metrics against scikit-learn, hand-computed values, and the rules they obey."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from stages.evaluate.intervals import bootstrap_intervals, resampled_scores
from stages.evaluate.measure import measure
from stages.evaluate.scores import (
    calibration_points,
    class_scores,
    confusion,
    overall_scores,
    predictions_from,
    roc_points,
)
from stages.shared.metrics import accuracy, softmax, wilson_interval


def random_case(seed: int, num_images: int, num_classes: int, *, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K), rounded so that some are equal, and labels (N,) that they favour a little."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=num_images)
    logits = generator.normal(size=(num_images, num_classes)) + 1.2 * np.eye(num_classes)[labels]
    return logits.round(decimals).astype(np.float32), labels


cases = st.builds(
    random_case,
    st.integers(0, 10**6),
    num_images=st.integers(1, 60),
    num_classes=st.integers(2, 5),
    decimals=st.integers(0, 3),
)


def test_softmax_survives_large_logits():
    assert softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])) == pytest.approx(np.array([[1, 0], [0.5, 0.5]]))


def test_softmax_is_computed_row_by_row_in_float64():
    logits = np.array([[0.1, 0.2, 0.4], [1, 2, 3]], dtype=np.float32)
    found = softmax(logits)
    exact = np.exp(logits.astype(np.float64))
    assert found.dtype == np.float64
    assert found == pytest.approx(exact / exact.sum(axis=1, keepdims=True), rel=1e-14)


def test_accuracy_counts_the_largest_logit():
    assert accuracy(np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1, 0, 0, 0])) == 0.75


def test_wilson_interval_has_the_textbook_value():
    # Newcombe (1998), table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_interval_of_no_success_and_of_all():
    # By hand: z²/(n + z²) with z = 1.959964.
    edge = 1.959963984540054**2 / (20 + 1.959963984540054**2)
    assert wilson_interval(0, 20) == pytest.approx((0.0, edge), abs=1e-12)
    assert wilson_interval(20, 20) == pytest.approx((1 - edge, 1.0), abs=1e-12)


def test_wilson_interval_takes_numpys_numbers_and_gives_pythons():
    low, high = wilson_interval(np.int64(3), np.int64(7))
    assert (type(low), type(high)) == (float, float)
    assert wilson_interval(3, 7) == (low, high)


@given(st.integers(1, 5000), st.data())
def test_wilson_interval_holds_its_proportion_and_has_width(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert high > low


def test_wilson_interval_covers_the_truth_in_about_95_of_100_samples():
    successes = np.random.default_rng(0).binomial(80, 0.9, size=2000)
    intervals = {count: wilson_interval(count, 80) for count in np.unique(successes)}
    covered = np.mean([intervals[count][0] <= 0.9 <= intervals[count][1] for count in successes])
    assert 0.93 < covered < 0.98


def test_scores_agree_with_scikit_learn():
    logits, labels = random_case(1, 200, 2)
    overall = overall_scores(predictions_from(logits, labels), bins=15)
    probabilities = softmax(logits)
    assert overall["test_loss"] == pytest.approx(log_loss(labels, probabilities))
    assert overall["macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(axis=1), average="macro"))
    assert overall["roc_auc"] == pytest.approx(roc_auc_score(labels == 0, probabilities[:, 0]))


def test_calibration_error_of_two_hand_made_bins():
    # Confidence 0.75, right 1 of 2 times; confidence 0.95, right 2 of 2: (2·0.25 + 2·0.05) / 4.
    odds = np.log(np.array([3.0, 3.0, 19.0, 19.0]))
    predictions = predictions_from(np.stack([odds, np.zeros(4)], axis=1), np.array([0, 1, 0, 0]))
    assert overall_scores(predictions, bins=10)["ece"] == pytest.approx(0.15)
    assert [point["num_images"] for point in calibration_points(predictions, 10)] == [2, 2]


@given(cases, st.integers(1, 30))
def test_calibration_error_is_a_fraction(case, bins):
    predictions = predictions_from(*case)
    assert 0 <= overall_scores(predictions, bins=bins)["ece"] <= 1
    assert sum(point["num_images"] for point in calibration_points(predictions, bins)) == len(case[1])


@given(st.integers(0, 10**6))
def test_auc_depends_on_the_ranks_alone(seed):
    logits, labels = random_case(seed, 40, 2)
    odds = (logits[:, 0] - logits[:, 1]).round(1)
    bent = np.stack([np.exp(odds / 4) + odds, np.zeros(40)], axis=1)
    plain = np.stack([odds, np.zeros(40)], axis=1)
    aucs = [overall_scores(predictions_from(values, labels), bins=5)["roc_auc"] for values in (plain, bent)]
    assert aucs[0] == pytest.approx(aucs[1], nan_ok=True)


def test_auc_of_equal_scores_is_one_half():
    predictions = predictions_from(np.zeros((6, 2)), np.array([0, 0, 1, 1, 1, 0]))
    assert overall_scores(predictions, bins=5)["roc_auc"] == 0.5


def test_auc_takes_the_first_class_as_the_positive_one():
    predictions = predictions_from(np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), np.array([0, 1, 1]))
    assert overall_scores(predictions, bins=5)["roc_auc"] == 1.0
    assert roc_points(predictions)[1] == {"false_positive_rate": 0.0, "true_positive_rate": 1.0}


@given(cases)
@settings(deadline=None)
def test_a_resample_of_every_image_once_gives_the_library_scores(case):
    predictions = predictions_from(*case)
    resampled = resampled_scores(predictions, np.ones((1, len(case[1]))), bins=7)
    expected = overall_scores(predictions, bins=7)
    for name in ("test_loss", "macro_f1", "roc_auc", "ece"):
        assert resampled[name][0] == pytest.approx(expected[name], nan_ok=True, abs=1e-12)
    assert resampled["f1"][0] == pytest.approx(class_scores(predictions)["f1"], nan_ok=True)


def test_a_weighted_resample_equals_the_repeated_images():
    logits, labels = random_case(3, 30, 2)
    weights = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30), size=5)
    resampled = resampled_scores(predictions_from(logits, labels), weights.astype(float), bins=7)
    for row, weight in enumerate(weights):
        expected = overall_scores(predictions_from(logits.repeat(weight, axis=0), labels.repeat(weight)), bins=7)
        for name in ("test_loss", "macro_f1", "roc_auc", "ece"):
            assert resampled[name][row] == pytest.approx(expected[name])


def test_bootstrap_interval_of_the_loss_is_the_normal_one():
    predictions = predictions_from(*random_case(5, 400, 2))
    low, high = bootstrap_intervals(predictions, bins=5, samples=4000, seed=0)["test_loss"]
    error = predictions.losses.std() / np.sqrt(400)
    assert (low, high) == pytest.approx(predictions.losses.mean() + error * np.array([-1.96, 1.96]), abs=0.1 * error)


def test_intervals_do_not_depend_on_how_many_resamples_are_held_at_once(monkeypatch):
    predictions = predictions_from(*random_case(6, 50, 3))
    whole = bootstrap_intervals(predictions, bins=5, samples=64, seed=1)
    monkeypatch.setattr("stages.evaluate.intervals.CHUNK", 50 * 7)
    for name, interval in bootstrap_intervals(predictions, bins=5, samples=64, seed=1).items():
        np.testing.assert_allclose(interval, whole[name])


def test_confusion_rows_are_the_actual_classes():
    predictions = predictions_from(np.eye(3)[[0, 1, 1, 0]], np.array([0, 0, 2, 0]))
    assert confusion(predictions).tolist() == [[2, 1, 0], [0, 0, 0], [0, 1, 0]]


def test_one_class_test_split_leaves_undefined_scores_null():
    logits, _ = random_case(7, 12, 2)
    metrics = measure(predictions_from(logits, np.zeros(12, np.int64)), ("hotdog", "other"), bins=5, samples=50, seed=0)
    assert metrics["roc_auc"] is metrics["roc_auc_low"] is None
    assert metrics["per_class"]["other"]["recall"] is None
    assert metrics["per_class"]["hotdog"]["precision"] == 1.0
    assert roc_points(predictions_from(logits, np.zeros(12, np.int64))) == []


def test_each_interval_holds_its_score():
    metrics = measure(predictions_from(*random_case(8, 150, 4)), "abcd", bins=10, samples=400, seed=0)
    for values in (metrics, *metrics["per_class"].values()):
        for name in {key.removesuffix("_low") for key in values if key.endswith("_low")} - {"roc_auc", "ece"}:
            assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
    assert metrics["roc_auc"] is None
    assert metrics["positive_class"] is None
