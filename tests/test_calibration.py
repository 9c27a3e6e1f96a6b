"""Temperature scaling finds the temperature that the logits were drawn with, and does no harm."""

import numpy as np
import pytest
from scipy import special

from stages.shared.calibration import balanced_weights, fit_temperature, log_loss


def drawn(num_images: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 4) and labels that follow their probabilities exactly once the logits are divided by `temperature`."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(num_images, 4))
    chances = special.softmax(logits, axis=1).cumsum(axis=1)
    labels = (generator.uniform(size=(num_images, 1)) > chances).sum(axis=1)
    return temperature * logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_drew_the_labels_is_found(temperature):
    assert fit_temperature(*drawn(20_000, temperature)) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_log_loss_is_never_larger_with_the_temperature(seed):
    logits, labels = drawn(num_images=2 + seed * 5, temperature=0.3 + seed / 5, seed=seed)
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(labels))
    temperature = fit_temperature(logits, labels, weights)
    assert log_loss(logits / temperature, labels, weights) <= log_loss(logits, labels, weights)


def test_a_few_images_that_were_all_right_do_not_make_it_certain():
    logits = np.eye(2)[[0, 1] * 5]
    assert 0.5 < fit_temperature(logits, np.array([0, 1] * 5)) < 1


def test_log_loss_is_that_of_the_textbook():
    logits, labels = np.log([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])
    assert log_loss(logits, labels) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert log_loss(logits, labels, np.array([1.0, 3.0])) == pytest.approx(-(np.log(0.5) + 3 * np.log(0.75)) / 4)


def test_balanced_weights_give_each_class_the_same_and_mean_one():
    labels = np.array([0] * 9 + [3])
    weights = balanced_weights(labels)
    assert weights.mean() == pytest.approx(1)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 3].sum())
