"""The drawn image sets: reproducible, never repeating, and not to be told apart by colour."""

import numpy as np
import pytest
from PIL import Image

from synthetic_images import SOURCE_CLASSES, TARGET_CLASSES, draw_source, draw_target, many
from synthetic_images.curves import bow, normals, tube, zigzag
from synthetic_images.hotdogs import HOTDOGS
from synthetic_images.lookalikes import LOOKALIKES
from synthetic_images.many import draw_many
from synthetic_images.scenes import picture

SETS = [(draw_target, TARGET_CLASSES), (draw_source, SOURCE_CLASSES)]
EVERY_CLASS = [pytest.param(draw, name, id=f"{draw.__name__}-{name}") for draw, names in SETS for name in names]


@pytest.mark.parametrize(("draw", "class_name"), EVERY_CLASS)
def test_the_same_arguments_give_the_same_bytes(draw, class_name):
    first = draw(class_name, 3, 0, 64)
    draw(class_name, 4, 0, 64)  # nothing drawn in between leaves a trace
    assert np.array_equal(first, draw(class_name, 3, 0, 64))


@pytest.mark.parametrize(("draw", "class_name"), EVERY_CLASS)
def test_indices_and_seeds_give_different_pictures(draw, class_name):
    pictures = {draw(class_name, index, seed, 48).tobytes() for index in range(8) for seed in (0, 1)}
    assert len(pictures) == 16


@pytest.mark.parametrize("few", [0, 100])
def test_many_pictures_are_those_that_are_drawn_one_by_one(monkeypatch, few):
    """By forks of this process, and without."""
    monkeypatch.setattr(many, "FEW", few)
    names, indices = list(SOURCE_CLASSES) * 2, range(3, 3 + 2 * len(SOURCE_CLASSES))
    drawn = list(draw_many(draw_source, names, indices, 5, 32))
    assert len(drawn) == len(names)
    for name, index, found in zip(names, indices, drawn, strict=True):
        assert np.array_equal(found, draw_source(name, index, 5, 32))


def test_classes_and_tasks_do_not_share_random_numbers():
    drawn = [draw_target("hotdog", 0, 0, 48), draw_target("not-hotdog", 0, 0, 48), draw_source("hotdog", 0, 0, 48)]
    assert len({picture.tobytes() for picture in drawn}) == 3


@pytest.mark.parametrize("side", [16, 33, 128, 257])
@pytest.mark.parametrize(("draw", "names"), SETS)
def test_longest_side_is_exact_and_the_aspect_stays_within_3_to_4(draw, names, side):
    shapes = {draw(names[index % len(names)], index, 0, side).shape for index in range(12)}
    for height, width, channels in shapes:
        assert channels == 3
        assert max(height, width) == side
        assert min(height, width) >= round(0.75 * side)
    assert any(height > width for height, width, _ in shapes)
    assert any(width > height for height, width, _ in shapes)


def test_pictures_are_uint8_and_use_the_range():
    drawn = draw_target("hotdog", 0, 0, 128)
    assert drawn.dtype == np.uint8
    assert drawn.std() > 15


@pytest.mark.parametrize("kind", [*HOTDOGS, *LOOKALIKES], ids=lambda kind: kind.__name__)
def test_every_kind_is_drawn(kind):
    """Each kind changes the picture that the same random numbers give with nothing in it."""
    empty = picture(lambda pen: None, np.random.default_rng(5), 96).astype(int)
    drawn = picture(kind, np.random.default_rng(5), 96).astype(int)
    assert drawn.shape == empty.shape
    assert (np.abs(drawn - empty).max(axis=2) > 40).mean() > 0.03


def test_the_source_task_has_a_hotdog_class_as_imagenet_has():
    assert "hotdog" in SOURCE_CLASSES
    assert list(SOURCE_CLASSES) == sorted(set(SOURCE_CLASSES))
    assert 10 <= len(SOURCE_CLASSES) <= 16


@pytest.mark.parametrize(("draw", "names"), SETS)
def test_an_unknown_class_is_refused_with_the_known_ones(draw, names):
    with pytest.raises(ValueError, match=f"class 'hamburger' is unknown; it is one of {names[0]}"):
        draw("hamburger", 0, 0, 64)


def test_colours_and_thumbnails_do_not_solve_the_target():
    train, train_labels = _thumbnails(range(150))
    test, test_labels = _thumbnails(range(150, 250))
    shallow = {
        "nearest centroid": _nearest_centroid(train, train_labels, test),
        "ridge regression": _ridge(train, train_labels, test),
    }
    for name, predicted in shallow.items():
        accuracy = (predicted == test_labels).mean()
        assert accuracy <= 0.8, f"{name} reaches {accuracy:.3f}"


def test_a_tube_outlines_its_spine():
    outline = tube(bow(2.0), 0.25)
    assert outline[:, 0].min() == pytest.approx(-1.25, abs=0.02)
    assert outline[:, 0].max() == pytest.approx(1.25, abs=0.02)
    assert np.abs(outline[:, 1]).max() == pytest.approx(0.25)


def test_normals_are_unit_vectors_across_the_spine():
    spine = bow(2.0, bend=0.4)
    across = normals(spine)
    assert np.allclose(np.hypot(across[:, 0], across[:, 1]), 1)
    assert np.allclose((across * np.gradient(spine, axis=0)).sum(axis=1), 0)


def test_a_zigzag_keeps_its_amplitude_and_crosses_twice_a_wave():
    heights = zigzag(bow(2.0), 0.1, 5)[:, 1]
    assert 0.09 < np.abs(heights).max() <= 0.1 + 1e-9
    assert (np.diff(np.sign(heights[1:-1])) != 0).sum() == 9


def _thumbnails(indices: range) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 8*8*3 + 3 + 3): a thumbnail, the mean colour and its spread; labels (n,) 0 or 1."""
    features, labels = [], []
    for index in indices:
        for label, name in enumerate(TARGET_CLASSES):
            drawn = draw_target(name, index, 0, 48)
            small = np.asarray(Image.fromarray(drawn).resize((8, 8), Image.Resampling.BOX), dtype=np.float64)
            features.append(np.concatenate([small.ravel(), drawn.mean((0, 1)), drawn.std((0, 1))]) / 255)
            labels.append(label)
    return np.stack(features), np.array(labels)


def _nearest_centroid(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    centroids = np.stack([train[labels == label].mean(axis=0) for label in (0, 1)])
    return ((test[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)


def _ridge(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    middle = train.mean(axis=0)
    centred = train - middle
    weights = np.linalg.solve(centred.T @ centred + 1.0 * np.eye(train.shape[1]), centred.T @ (2.0 * labels - 1))
    return ((test - middle) @ weights > 0).astype(int)
