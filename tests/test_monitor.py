"""Drift is seen where there is some, seldom where there is none, and the stage says what it did."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file as save_weights
from scipy import stats

from flows.pipeline import local_sources
from stages import features
from stages.monitor import __main__ as monitor
from stages.monitor import two_sample
from stages.monitor.compare import colours, render
from stages.monitor.two_sample import LEVEL, compare_counts, compare_samples
from stages.report.__main__ import read_fragment
from stages.shared import artifacts
from stages.shared.files import read_json
from stages.shared.model import build_model
from tests.experiment import write_params
from tests.exported_project import ARCHITECTURE, CROP, RESIZE, copied_project

SIZE = 16


def drawn(generator: np.random.Generator, num: int, shift: float = 0.0) -> np.ndarray:
    """Features (num, SIZE) of three kinds of pictures, heavy-tailed, and moved by `shift` along one direction."""
    kinds = 3 * np.eye(SIZE)[generator.integers(0, 3, num)]
    return (kinds + generator.standard_t(4, (num, SIZE)) + shift * np.eye(SIZE)[5]).astype(np.float32)


def share_of_alarms(monkeypatch: pytest.MonkeyPatch, shift: float, nights: int = 100) -> float:
    monkeypatch.setattr(two_sample, "NUM_DIVISIONS", 199)
    generator = np.random.default_rng(0)
    p_values = [
        compare_samples(drawn(generator, 80), drawn(generator, 40, shift), night).p_value for night in range(nights)
    ]
    return float((np.array(p_values) <= LEVEL).mean())


def test_halves_of_one_source_raise_an_alarm_in_at_most_five_of_a_hundred_nights(monkeypatch):
    assert share_of_alarms(monkeypatch, shift=0.0) <= 0.05


def test_a_shift_is_found_in_at_least_ninety_of_a_hundred_nights(monkeypatch):
    assert share_of_alarms(monkeypatch, shift=2.5) >= 0.9


def test_answers_to_one_class_alone_differ_and_those_to_as_many_of_each_do_not():
    held_out = np.array([40, 42, 0])
    assert compare_counts(held_out, np.array([45, 5, 0]), 0) <= LEVEL / 3
    assert compare_counts(held_out, np.array([24, 26, 0]), 0) > 0.5
    assert compare_counts(np.array([9, 0]), np.array([30, 0]), 0) == 1.0


def test_answers_are_compared_as_by_chi_square_in_memory_that_does_not_grow_with_them():
    held_out, recent = np.array([300_000, 500_000, 200_000]), np.array([170, 240, 90])
    by_formula = stats.chi2_contingency(np.stack([held_out, recent])).pvalue
    tracemalloc.start()
    assert compare_counts(held_out, recent, 0) == pytest.approx(by_formula, abs=0.04)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_colours_are_each_channels_mean_and_deviation():
    crops = np.zeros((2, 4, 4, 3), np.uint8)
    crops[1, :2, :, 2] = 200
    assert colours(crops).tolist() == [[0] * 6, [0, 0, 100, 0, 0, 100]]


def test_the_pictures_that_differ_have_the_largest_witness():
    generator = np.random.default_rng(0)
    recent = np.concatenate([drawn(generator, 40), drawn(generator, 10, shift=9)])
    assert set(np.argsort(-compare_samples(drawn(generator, 100), recent, 0).witness)[:10]) == set(range(40, 50))


def test_without_a_source_nothing_is_run_and_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(Path(), {})
    monitor.main()
    assert read_json(artifacts.MONITOR / "report.json") == {"verdict": "not run: monitor.source is null"}
    fragment = artifacts.MONITOR / "fragment.html"
    assert fragment.read_text() == "<!-- not run: monitor.source is null -->\n"  # DVC warns of empty files
    assert read_fragment(fragment) == ""


@pytest.fixture
def project(tmp_path):
    """An exported experiment with its features, and a folder of recent pictures: the test images and two files that are none."""
    with copied_project(tmp_path) as folder:
        torch.manual_seed(0)
        artifacts.PRETRAIN.mkdir(parents=True)
        weights = build_model(ARCHITECTURE, 10, CROP).state_dict()
        save_weights(weights, artifacts.PRETRAIN / "weights.safetensors")
        watch("recent")
        features.main()
        shutil.copytree(artifacts.SOURCE_DATASET / "images", "recent")
        Path("recent/notes.txt").write_text("no picture")
        Path("recent/<b>broken.jpg").write_bytes(b"\xff\xd8\xff")
        yield folder


def watch(source: str) -> None:
    sizes = {"preprocess.resize": RESIZE, "preprocess.crop": CROP}
    write_params(
        Path(), {"model.architecture": ARCHITECTURE, "model.weights": "synthetic", "monitor.source": source, **sizes}
    )


def test_known_pictures_are_no_drift_and_inverted_ones_are(project):
    monitor.main()
    report = read_json(artifacts.MONITOR / "report.json")
    assert (report["drift"], report["num_pictures"], report["num_training"]) == (False, 36, 24)
    assert report["skipped"] == ["<b>broken.jpg: corrupt", "notes.txt: not_image"]
    assert sum(report["answers"].values()) == pytest.approx(1)
    assert report["training"] == {"hotdog": 0.5, "not-hotdog": 0.5}
    assert 0 <= report["familiarity"]["unfamiliar"] <= 1

    for path in Path("recent").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path).convert("RGB"))).save(path)
    monitor.main()
    assert read_json(artifacts.MONITOR / "report.json")["drift"] is True
    page = (artifacts.MONITOR / "fragment.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 12
    assert "drift: p = " in page
    assert "of the held-out ones" not in page  # this project's recipe is not validated
    report = read_json(artifacts.MONITOR / "report.json")
    assert set(report["p_values"]) == {"features", "colours"}
    validated = report | {"held_out": {"hotdog": 0.25, "not-hotdog": 0.75}, "most_unlike": []}
    assert "of the held-out ones" in render(validated, [])


def test_too_few_pictures_are_compared_with_nothing(project):
    shutil.rmtree("recent/train")
    monitor.main()
    assert read_json(artifacts.MONITOR / "report.json")["verdict"] == "not run: 12 pictures in recent, needs 20"


def test_a_folder_that_is_not_there_is_named(project):
    watch("elsewhere")
    with pytest.raises(ValueError, match=r"monitor\.source: elsewhere: no such folder"):
        monitor.main()


def test_the_flow_notices_new_pictures_in_the_folder(tmp_path):
    (tmp_path / "recent").mkdir()
    (tmp_path / "params.yaml").write_text("monitor:\n  source: recent\n")
    local_sources.remember(tmp_path, local_sources.read(tmp_path, tmp_path), "monitor")
    assert not local_sources.changed(tmp_path, local_sources.read(tmp_path, tmp_path), "monitor")
    (tmp_path / "recent/new.jpg").write_bytes(b"a picture")
    assert local_sources.changed(tmp_path, local_sources.read(tmp_path, tmp_path), "monitor")
