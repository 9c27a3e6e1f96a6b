"""Thresholds for answering: what they promise holds on new data, on drawn logits."""

import numpy as np
import pytest

from stages.export.decisions import (
    NEVER,
    advice,
    familiarity_threshold,
    fewest_held_out,
    images_needed,
    lowest_threshold,
    probability_thresholds,
    surest_first,
)
from stages.shared.metrics import softmax

CLASSES = ("hotdog", "other")


def drawn(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a classifier that is right in about 85 % of all cases, and overconfident by half."""
    labels = generator.integers(0, 2, count)
    margin = generator.normal(1.5, 1.5, count) * np.where(labels == 0, 1, -1)
    return 1.5 * np.stack([margin, -margin], axis=1), labels


@pytest.mark.parametrize(("count", "demanded"), [(200, 0.9), (1000, 0.95)])
def test_promised_precision_holds_in_95_percent_of_200_resamples(count: int, demanded: float) -> None:
    generator = np.random.default_rng(0)
    new_logits, new_labels = drawn(generator, 200_000)
    probability, predicted = softmax(new_logits).max(axis=1), new_logits.argmax(axis=1)
    kept, answered = 0, 0
    for _ in range(200):
        threshold = probability_thresholds(*drawn(generator, count), CLASSES, {"hotdog": demanded})["hotdog"]
        counts = (predicted == 0) & (probability >= threshold)
        answered += threshold != NEVER
        kept += not counts.any() or bool((new_labels[counts] == 0).mean() >= demanded)
    assert kept >= 190
    assert answered >= 100  # by thresholds that are of use


def test_a_wrong_label_among_the_surest_answers_does_not_decide() -> None:
    right = np.ones(400, bool)
    right[3] = False
    assert lowest_threshold(np.linspace(1, 0.5, 400), right, 0.95) < 0.6


def test_as_many_images_as_advised_mostly_show_the_precision() -> None:
    generator = np.random.default_rng(3)

    def answers(count: int) -> tuple[np.ndarray, np.ndarray]:
        return surest_first(*drawn(generator, count), 0)

    advised = [images_needed(answers(100)[1], 0.9, 100) for _ in range(50)]
    count = int(np.median([number for number in advised if number]))
    assert 150 < count < 1000
    assert sum(lowest_threshold(*answers(100), 0.9) != NEVER for _ in range(50)) < 25
    assert sum(lowest_threshold(*answers(count), 0.9) != NEVER for _ in range(50)) > 25


def test_where_every_answer_is_right_the_fewest_that_can_show_it_are_advised() -> None:
    assert images_needed(np.ones(20, bool), 0.95, 40) == 118  # 59 answers, one of two images
    assert lowest_threshold(np.ones(59), np.ones(59, bool), 0.95) == 1.0
    assert lowest_threshold(np.ones(58), np.ones(58, bool), 0.95) == NEVER


def test_a_class_without_a_threshold_comes_with_advice() -> None:
    logits, labels = drawn(np.random.default_rng(4), 100)
    told = advice(logits, labels, CLASSES, "hotdog", 0.95)
    assert "100 held-out images cannot show 0.95 for hotdog, so it will never be answered" in told
    told = advice(logits, 1 - labels, CLASSES, "hotdog", 0.95)
    assert "more images alone are of little help; or demand less" in told


@pytest.mark.parametrize(("count", "max_refused"), [(95, 0.05), (237, 0.02), (500, 0.02)])
def test_no_more_familiar_pictures_are_refused_than_promised(count: int, max_refused: float) -> None:
    generator = np.random.default_rng(1)
    threshold = familiarity_threshold(count, max_refused)
    refused = []
    for _ in range(200):
        held_out = np.sort(generator.normal(size=count))
        familiarity = np.interp(generator.normal(size=20_000), held_out, np.linspace(0, 1, count))
        refused.append((familiarity < threshold).mean())
    assert np.mean(np.array(refused) <= max_refused) >= 0.95
    assert np.mean(refused) > max_refused / 10


def test_too_few_pictures_to_promise_anything_refuse_none() -> None:
    assert familiarity_threshold(20, 0.01) == 0.0
    assert familiarity_threshold(1000, 0.0) == 0.0


def test_so_many_images_as_are_said_to_be_needed_give_a_threshold_of_familiarity() -> None:
    assert fewest_held_out(0.02) == 236
    assert familiarity_threshold(235, 0.02) == 0.0
    assert familiarity_threshold(236, 0.02) > 0.0


def test_equal_confidences_are_judged_together() -> None:
    right = np.arange(400) < 100
    assert lowest_threshold(np.ones(400), right, 0.95) == NEVER
    assert lowest_threshold(np.ones(400), np.arange(400) < 396, 0.95) == 1.0


def test_precision_that_cannot_be_shown_is_never_answered() -> None:
    right = np.ones(20, bool)
    assert lowest_threshold(np.linspace(1, 0.5, 20), right, 0.99) == NEVER  # 299 right ones would be needed
    assert lowest_threshold(np.linspace(1, 0.5, 400), np.ones(400, bool), 0.99) < 0.7
    assert lowest_threshold(np.linspace(1, 0.5, 400), np.zeros(400, bool), 0.5) == NEVER


def test_only_the_classes_named_have_a_threshold_and_others_are_refused() -> None:
    logits, labels = drawn(np.random.default_rng(2), 400)
    assert set(probability_thresholds(logits, labels, CLASSES, {"other": 0.8})) == {"other"}
    with pytest.raises(ValueError, match=r"decision\.min_precision names cat; the classes are hotdog, other"):
        probability_thresholds(logits, labels, CLASSES, {"cat": 0.9})
