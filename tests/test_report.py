"""The report: whole without optional parts, safe with hostile names, offline, and the same bytes twice."""

import contextlib
import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from masking import masked
from stages.compare.__main__ import main as compare
from stages.report.__main__ import main
from stages.report.figures import draw_confusion
from stages.report.runs import most_confident_mistakes
from stages.report.tables import flatten, fold_intervals
from stages.shared import artifacts
from stages.shared.files import write_json, write_text
from tests.finished_experiment import write_evaluation, write_experiment

HOSTILE = '<script>alert("1")</script> & $x$'


def report_in(folder: Path, write: Callable[[], None]) -> str:
    """The page of the experiment that `write` leaves in `folder`."""
    with contextlib.chdir(folder):
        write()
        compare()
        main()
        return artifacts.REPORT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="module")
def plain(plain_folder):
    """The page of the default experiment, without parity table and sweeps."""
    return report_in(plain_folder, write_experiment)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of an experiment with HTML wherever a name can stand, and with every optional part."""

    def write() -> None:
        write_experiment(class_names=(HOSTILE, "other"))
        rows = [
            {"runtime": "CPU", "verdict": "passed", "max_error": 1.25e-6},
            {"runtime": HOSTILE, "verdict": "not run", "reason": "no CUDA device", HOSTILE: HOSTILE},
        ]
        write_json(artifacts.PARITY, {"rows": rows})
        sweep = artifacts.ROOT / "sweeps" / "<b>"
        write_json(sweep / "table.json", [{"freeze": "layer4", "a": HOSTILE}])
        write_text(sweep / "figure.svg", f"<svg xmlns='http://www.w3.org/2000/svg'>{HOSTILE}</svg>")

    return report_in(tmp_path_factory.mktemp("hostile"), write)


@pytest.fixture(scope="module")
def one_class(tmp_path_factory):
    """The page of a test split of one class, on which finetune makes no mistake."""

    def write() -> None:
        write_experiment()
        labels = np.zeros(40, np.int64)
        write_evaluation("finetune", ("hotdog", "not-hotdog"), labels, 9.0 * np.eye(2)[labels])
        write_evaluation("scratch", ("hotdog", "not-hotdog"), labels, np.random.default_rng(0).normal(size=(40, 2)))

    return report_in(tmp_path_factory.mktemp("one-class"), write)


class Page(HTMLParser):
    """Collects the tags, their attributes and the ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


def test_report_shows_every_part_of_a_plain_experiment(plain):
    sections = re.findall(r'<section id="(\w+)">', plain)
    assert sections == ["comparison", "learning", "confusion", "roc", "calibration", "mistakes", "speed", "provenance"]
    assert "published (d2l)" in plain
    assert "scratch minus finetune" in plain
    assert "train.finetune.lr" in plain


def test_a_score_and_its_interval_are_one_cell():
    interval, without = {"auc_low": 0.8816, "auc_high": 0.8928}, {"auc_low": None, "auc_high": None}
    assert fold_intervals({"freeze": "bn1", "auc": 0.8872, **interval}) == {
        "freeze": "bn1",
        "auc": "0.887 (0.882 to 0.893)",
    }
    assert fold_intervals({"auc": 0.665, **without}) == {"auc": 0.665}
    assert fold_intervals({"auc": None, **without, "too_low": 1}) == {"auc": None, "too_low": 1}


def test_parity_and_sweeps_appear_once_their_files_are_there(plain, hostile):
    for text in ('id="parity"', "no CUDA device", "1.25e-06", 'id="ablations"', "layer4", "data:image/svg+xml;base64,"):
        assert text in hostile
        assert text not in plain


def test_report_loads_nothing_from_elsewhere(hostile):
    page = Page(hostile)
    targets = page.values("src") + page.values("href") + page.values("xlink:href") + page.values("srcset")
    assert targets
    assert all(target.startswith(("data:", "#")) for target in targets)
    assert not re.search(r"@import|url\((?!#)", hostile)


def test_no_name_can_write_html_into_the_report(hostile):
    page = Page(hostile)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(attrs for tag, attrs in page.tags if tag == "b")  # the page's own have a style; a name's has none
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;") in hostile


def test_ids_are_unique_and_links_reach_them(plain):
    page = Page(plain)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href") + page.values("xlink:href") if link.startswith("#")} <= set(ids)


def test_pictures_and_tables_can_be_read_aloud(hostile):
    page = Page(hostile)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("aria-hidden") == "true" for tag, attrs in page.tags if tag == "svg")
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")


def test_report_and_figures_are_the_same_bytes_twice(plain, plain_folder):
    figures = {path.name: path.read_bytes() for path in (plain_folder / "artifacts" / "figures").iterdir()}
    assert report_in(plain_folder, lambda: None) == plain
    for name, content in figures.items():
        assert (plain_folder / "artifacts" / "figures" / name).read_bytes() == content
    assert set(figures) >= {"roc.png", "roc.svg", "calibration.svg", "confusion-finetune.svg", "train-loss.png"}


def test_thirty_classes_have_no_roc_section(tmp_path):
    page = report_in(tmp_path, lambda: write_experiment([f"class-{index}" for index in range(30)], num_images=60))
    assert 'id="roc"' not in page
    assert 'id="confusion"' in page


def test_one_class_test_split_has_no_roc_section(one_class):
    assert 'id="roc"' not in one_class
    assert 'id="calibration"' in one_class


def test_recipe_without_mistakes_says_so(one_class):
    assert one_class.count("every test image was classified correctly") == 1


def test_mistakes_come_surest_first_with_their_own_pixels():
    rows = [
        {"path": "a", "label": "x", "prediction": "y", "p_x": "0.4", "p_y": "0.6", "correct": "0"},
        {"path": "b", "label": "x", "prediction": "x", "p_x": "1", "p_y": "0", "correct": "1"},
        {"path": "c", "label": "x", "prediction": "y", "p_x": "0.1", "p_y": "0.9", "correct": "0"},
    ]
    pixels = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 100, 250)])
    mistakes = most_confident_mistakes(rows, pixels, 8)
    assert [mistake.path for mistake in mistakes] == ["c", "a"]
    assert mistakes[0].picture == most_confident_mistakes(rows[2:], pixels[2:], 1)[0].picture != mistakes[1].picture


def test_report_refuses_predictions_of_another_test_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment()
    np.save(artifacts.TEST_SPLIT / "labels.npy", np.zeros(3, np.int64))
    np.save(artifacts.TEST_SPLIT / "pixels.npy", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="run evaluate finetune again"):
        main()


def test_secrets_in_addresses_are_masked():
    assert masked("https://me:secret@host/a.zip?token=secret") == "https://***@host/a.zip?***"
    assert masked("s3://bucket/a@b.zip") == "s3://bucket/a@b.zip"
    assert dict(flatten({"dataset": {"source": "https://me:pw@host/x"}})) == {"dataset.source": "https://***@host/x"}


def test_class_names_with_dollars_stay_text(tmp_path):
    figure = draw_confusion(tmp_path, "scratch", [{"label": "other", "prediction": "$5 menu$"}], ("$5 menu$", "other"))
    assert "$5 menu$" in figure


@pytest.mark.parametrize(
    ("path", "stage"),
    [("evaluate/finetune/roc.csv", "evaluate finetune"), ("evaluate/scratch/metrics.json", "evaluate scratch")],
)
def test_a_missing_input_names_the_stage_to_run(tmp_path, path, stage):
    with contextlib.chdir(tmp_path):
        write_experiment()
        compare()
        (artifacts.ROOT / path).unlink()
        with pytest.raises(ValueError, match=rf"{path}: no such file; run {stage}"):
            main()
