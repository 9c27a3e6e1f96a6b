"""The report: whole without optional parts, safe with hostile names, offline, and the same bytes twice."""

import contextlib
import html
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from masking import masked
from stages.compare.__main__ import main as compare
from stages.report.__main__ import main
from stages.report.figures import draw_confusion
from stages.report.heatmaps import grad_cam, overlay
from stages.report.parity import Cell, summarize_parity
from stages.report.runs import read_csv, show, surest_mistakes, surest_right
from stages.report.tables import flatten, fold_intervals
from stages.shared import artifacts
from stages.shared.files import read_json, write_json, write_text
from stages.shared.model import Mirrored, build_model
from stages.shared.transforms import Transform
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


def parity_row(runtime: str, verdict: str, **more: object) -> dict[str, object]:
    """A row as check_parity writes it."""
    usual = {"precision": "fp32", "subject": "core.onnx", "check": "agrees", "batch": None, "mode": "", "reason": ""}
    return {"runtime": runtime, "verdict": verdict, **usual, "max_error": None, "limit": None, **more}


def test_parity_is_one_matrix_and_says_why_a_cell_failed_or_was_not_run():
    timed = {"batch": 1, "p50_ms": 4.0, "images_per_second": 250.0, "check": "latency, batch 1"}
    rows = [
        parity_row("torch CPU", "passed", max_error=1e-6, limit=2e-5),
        parity_row("torch CPU", "passed", **timed),
        parity_row("torch CPU", "passed", **{**timed, "mode": "compiled", "p50_ms": 3.0}),
        parity_row("torch CPU", "passed", **{**timed, "batch": 32, "p50_ms": 90.0, "images_per_second": 355.0}),
        parity_row("CUDA", "not run: no CUDA device", precision="fp16"),
        parity_row("OpenVINO", "passed", max_error=1e-4, limit=2e-3),
        parity_row("OpenVINO", "failed", max_error=0.1, limit=2e-3, reason="probability off"),
        parity_row("file", "passed", precision=""),
    ]
    parity = summarize_parity(rows)
    assert parity.counts == {"passed": 6, "failed": 1, "not run": 1}
    assert parity.precisions == ["fp32", "fp16"]
    assert list(parity.runtimes) == ["torch CPU", "CUDA", "OpenVINO"]
    assert parity.runtimes["torch CPU"]["fp32"] == Cell("passed", "", 1e-6, 2e-5, 3.0, 355.0)
    assert parity.runtimes["CUDA"]["fp16"] == Cell("not run", "no CUDA device", None, None, None, None)
    assert parity.runtimes["OpenVINO"]["fp32"] == Cell("failed", "probability off", 0.1, 2e-3, None, None)
    assert [row["runtime"] for row in parity.failed] == ["OpenVINO"]
    assert len(parity.details["torch CPU"]) == 4


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of an experiment with HTML wherever a name can stand, and with every optional part."""

    def write() -> None:
        write_experiment(class_names=(HOSTILE, "other"))
        rows = [
            parity_row("CPU", "passed", max_error=1.5e-6, limit=2e-5),
            parity_row(HOSTILE, "not run: no CUDA device", reason=HOSTILE, subject=HOSTILE),
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
    for text in ('id="parity"', "no CUDA device", "1.5e-06", 'id="ablations"', "layer4", "data:image/svg+xml;base64,"):
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
    assert all(attrs.get("role") == "img" for tag, attrs in page.tags if tag == "svg")
    titles = re.findall(r"<svg[^>]*>\s*<title>([^<]+)</title>", hostile)
    assert len(titles) == sum(tag == "svg" for tag, _ in page.tags) == len(set(titles))
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")


def test_report_and_figures_are_the_same_bytes_twice(plain, plain_folder):
    figures = {path.name: path.read_bytes() for path in (plain_folder / "artifacts" / "figures").iterdir()}
    assert report_in(plain_folder, lambda: None) == plain
    for name, content in figures.items():
        assert (plain_folder / "artifacts" / "figures" / name).read_bytes() == content
    assert set(figures) >= {"roc.png", "roc.svg", "calibration.svg", "confusion-finetune.svg", "train-loss.png"}


def test_twelve_classes_have_no_roc_section(tmp_path):
    page = report_in(tmp_path, lambda: write_experiment([f"class-{index}" for index in range(12)], num_images=24))
    assert 'id="roc"' not in page
    assert 'id="confusion"' in page


def test_one_class_test_split_has_no_roc_section(one_class):
    assert 'id="roc"' not in one_class
    assert 'id="calibration"' in one_class


def test_a_recipe_of_no_epochs_has_a_line_instead_of_an_empty_curve(tmp_path, monkeypatch):
    def write() -> None:
        write_experiment()
        path = artifacts.train_dir("scratch") / "metrics.json"
        untrained = dict.fromkeys(("train_loss", "train_accuracy", "examples_per_second"))
        write_json(path, read_json(path) | untrained)
        history = artifacts.train_dir("scratch") / "history.csv"
        write_text(history, history.read_text().splitlines()[0] + "\n")
        kept = artifacts.train_dir("finetune") / "metrics.json"
        write_json(kept, read_json(kept) | {"result": "probe"})

    page = report_in(tmp_path, write)
    section = page[page.index('<section id="learning">') : page.index('<section id="confusion">')]
    assert "<strong>scratch</strong> has none: it was trained for 0 epochs" in section
    assert "The curve of <strong>finetune</strong> is the mean of its folds’ trainings" in section
    assert section.count("<svg") == 2
    assert "finetune ends at" in section
    assert "scratch ends at" not in section

    monkeypatch.chdir(tmp_path)
    shutil.copy(artifacts.train_dir("scratch") / "history.csv", artifacts.train_dir("finetune"))
    main()
    page = artifacts.REPORT.read_text(encoding="utf-8")
    section = page[page.index('<section id="learning">') : page.index('<section id="confusion">')]
    assert section.count("has none") == 2
    assert "<svg" not in section


def test_recipe_without_mistakes_says_so(one_class):
    assert one_class.count("every test image was classified correctly") == 1


def test_a_class_is_not_taken_for_itself(plain):
    captions = re.findall(r"<figcaption>([^<]*?) taken for <strong>([^<]*)</strong>", plain)
    assert captions
    assert all(label != prediction for label, prediction in captions)


def test_the_first_table_has_each_scores_interval_in_its_cell(plain):
    cell = r'data-label="test acc\."><span>0\.\d+ <span class="muted small">\(0\.\d+ to \d\.\d+\)'
    assert len(re.findall(cell, plain)) == 2


def test_mistakes_and_right_answers_come_surest_first():
    rows = [
        {"path": "a", "label": "x", "prediction": "y", "p_x": "0.4", "p_y": "0.6", "correct": "0"},
        {"path": "b", "label": "x", "prediction": "x", "p_x": "1", "p_y": "0", "correct": "1"},
        {"path": "c", "label": "x", "prediction": "y", "p_x": "0.1", "p_y": "0.9", "correct": "0"},
        {"path": "d", "label": "y", "prediction": "y", "p_x": "0.1", "p_y": "0.9", "correct": "1"},
        {"path": "e", "label": "y", "prediction": "y", "p_x": "0", "p_y": "1", "correct": "1"},
    ]
    assert surest_mistakes(rows, 8) == [2, 0]
    assert surest_mistakes(rows, 1) == [2]
    assert surest_right(rows, 1, 6) == [1, 4]
    assert surest_right(rows, 2, 1) == [1]


def test_answers_show_their_own_pixels(plain_folder, plain):
    with contextlib.chdir(plain_folder):
        rows = read_csv(artifacts.evaluate_dir("finetune") / "predictions.csv", "evaluate")
        pixels = np.load(artifacts.TEST_SPLIT / "images/pixels.npy")
        both, second = show("finetune", rows, pixels, [3, 7]), show("finetune", rows, pixels, [7])
    assert [answer.path for answer in both] == [rows[3]["path"], rows[7]["path"]]
    assert both[1].picture == second[0].picture != both[0].picture
    assert both[1].heatmap
    assert both[1].heatmap != both[1].picture


class Spot(nn.Module):
    """Logits (batch, 2): how red the picture is, where the kernel says so, and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 1, bias=False)
        self.head = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.maps.weight.zero_()
            self.maps.weight[0, 0] = 1.0
            self.head.weight.zero_()
            self.head.weight[0, 0] = 1.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps(images).mean((2, 3)))


def red_corner() -> np.ndarray:
    crops = np.zeros((1, 16, 16, 3), np.uint8)
    crops[0, :8, :8, 0] = 255
    return crops


def test_map_is_high_where_the_class_is_and_nowhere_else():
    transform = Transform(16, 16, (0.0,) * 3, (1.0,) * 3)
    heat = grad_cam(Spot(), red_corner(), [0], transform)
    assert heat is not None
    assert heat[0, :8, :8].min() == 1
    assert heat[0, 8:].max() == heat[0, :, 8:].max() == 0
    shown = overlay(red_corner()[0], heat[0])
    assert (shown[12:, 12:] == 0).all()
    assert (shown[:4, :4] != red_corner()[0, :4, :4]).any()


def test_map_changes_when_the_weights_are_shuffled():
    """The sanity check of Adebayo et al. (2018): a map that does not is an edge detector."""
    torch.manual_seed(0)
    model, transform = build_model("squeezenet1_1", 2, 64).eval(), Transform(64, 64, (0.5,) * 3, (0.5,) * 3)
    crops = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    before = grad_cam(model, crops, [0, 1, 0, 1], transform)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    after = grad_cam(model, crops, [0, 1, 0, 1], transform)
    assert before is not None
    assert after is not None
    assert np.abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.5


def test_the_map_of_a_mirrored_network_lies_on_the_picture_and_not_on_its_mirror_image():
    torch.manual_seed(0)
    model, transform = build_model("squeezenet1_1", 2, 64).eval(), Transform(64, 64, (0.5,) * 3, (0.5,) * 3)
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert np.allclose(grad_cam(Mirrored(model), crops, [0, 1], transform), grad_cam(model, crops, [0, 1], transform))


def test_transformers_have_no_map():
    model = build_model("vit_b_16", 2, 32).eval()
    assert grad_cam(model, np.zeros((1, 32, 32, 3), np.uint8), [0], Transform(32, 32, (0.5,) * 3, (0.5,) * 3)) is None


def test_report_refuses_predictions_of_another_test_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment()
    np.save(artifacts.TEST_SPLIT / "labels.npy", np.zeros(3, np.int64))
    np.save(artifacts.TEST_SPLIT / "images/pixels.npy", np.zeros((3, 8, 8, 3), np.uint8))
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
