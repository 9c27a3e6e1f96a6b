"""The nights of the drift benchmark: as many pictures as it says, alarms where the features moved, none where they did not."""

import numpy as np

from benchmarks.drift import CHANGES, Views, alarms
from benchmarks.quality.tasks import CROP
from stages.monitor import two_sample


def test_alarms_are_raised_where_the_features_moved_and_not_on_the_same_source(monkeypatch):
    monkeypatch.setattr(two_sample, "NUM_DIVISIONS", 199)
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    same = generator.normal(size=(200, 16)) + 3 * np.eye(16)[labels]
    colours = generator.normal(size=(200, 6))
    others = Views(generator.normal(size=(60, 16)) + 5 * np.eye(16)[7], generator.normal(size=(60, 6)))
    changed = {
        "same": Views(same, colours),
        "moved": Views(same + 2 * np.eye(16)[5], colours),
        "tinted": Views(same, colours + 2),
    }
    shares = alarms(changed, labels, others, nights=11)
    assert shares.pop("pictures") == 200
    assert shares.pop("same") <= 0.1
    assert shares == {"moved": 1.0, "tinted": 1.0, "one class only": 1.0, "half of them another task's": 1.0}


def test_every_change_makes_another_picture_of_the_same_shape():
    picture = np.random.default_rng(0).integers(0, 256, (CROP, CROP, 3), dtype=np.uint8)
    for name, change in CHANGES.items():
        changed = change(picture)
        assert (changed.shape, changed.dtype) == (picture.shape, np.uint8), name
        assert np.array_equal(changed, picture) == (name == "same"), name
