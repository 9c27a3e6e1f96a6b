"""flows/sweep's plan, table, picture and capacity: what is run, and what is said about it."""

import json
import math
import re
from difflib import ndiff
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from flows import overrides
from flows.project import read_yaml
from flows.sweep import backbones, capacity, experiments, picture, plan, ranking, table
from flows.sweep.capacity import Memory
from flows.sweep.plan import Sweep, load_sweep, unfold
from stages.shared.params import Params

ROOT = Path(__file__).parents[1]
READY = sorted(path.stem for path in plan.FOLDER.glob("*.yaml") if path.stem != "backbones")  # which needs weights


def sweep(**values: Any) -> Sweep:
    return Sweep.model_validate({"name": "toy", "title": "Toy", "x": "name", **values})


def test_every_combination_of_recipe_point_grid_and_seed_is_one_experiment() -> None:
    chosen = sweep(recipes=["a", "b"], points=[{"p": 1}, {"p": 2}], grid={"recipe.lr": [0.1, 0.00001]}, x="p")
    unfolded = unfold(chosen, 3, {"size": 9})
    assert len(unfolded) == 2 * 2 * 2 * 3
    last = unfolded[-1]
    assert last.name == "toy-b-2-0.00001-s2"
    assert last.target == "train@b"
    assert last.metrics == "artifacts/train/b/metrics.json"
    assert last.overrides == ["++size=9", "++p=2", "++train.b.lr=0.00001", "++train.b.seed=2"]


def test_a_points_values_go_over_the_callers_and_those_over_the_sweeps() -> None:
    chosen = sweep(settings={"a": 1, "b": 1, "c": 1}, points=[{"a": 3}], x="a")
    (experiment,) = unfold(chosen, 1, {"a": 2, "b": 2})
    assert experiment.overrides[:3] == ["++a=3", "++b=2", "++c=1"]


def test_a_point_with_a_stage_of_its_own_is_measured_once() -> None:
    chosen = sweep(
        recipes=["a", "b"], points=[{"name": "none", "target": "zero_shot"}, {"name": "some"}], grid={"k": [1, 2]}
    )
    unfolded = unfold(chosen, 3, {})
    assert [e.name for e in unfolded if e.target == "zero_shot"] == ["toy-a-none-s0"]
    assert len(unfolded) == 1 + 2 * 2 * 3


def test_two_points_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two points would both be toy-a_b-s0; give each a `name`"):
        unfold(sweep(points=[{"k": "a/b"}, {"k": "a b"}], x="k"), 1, {})


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", exclude_characters="$\\?", min_codepoint=32), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z][a-z-]*", fullmatch=True), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=30, deadline=None, derandomize=True)
@given(value=values)
def test_dvc_sets_every_value_as_it_was_meant(value: Any) -> None:
    params = {"section": {"key": "old"}}
    with TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        chosen = {"section.key": value, "section.new": value}
        for write in (overrides.write, write_as_dvc):
            YAML().dump(params, path)
            write(path, chosen)
            assert read_yaml(path) == {"section": {"key": value, "new": value}}
    set_here = overrides.applied(params, {"section.key": value, "section.new": value})
    assert set_here == {"section": {"key": value, "new": value}}
    assert params == {"section": {"key": "old"}}


def write_as_dvc(path: Path, settings: dict[str, Any]) -> None:
    apply_overrides(str(path), [overrides.as_override(key, value) for key, value in settings.items()])


def test_the_backbones_are_those_whose_weights_are_at_hand(tmp_path: Path) -> None:
    for name in (
        "resnet18-f37072fd.pth",
        "efficientnet_b0_rwightman-7f5810bc.pth",
        "mobilenet_v2.safetensors",
        "notes.txt",
    ):
        (tmp_path / name).touch()
    chosen = sweep(weights=[str(tmp_path), str(tmp_path / "missing")], settings={"recipe.epochs": 0})
    points = unfold(chosen, 1, {})
    assert [(e.point["name"], e.settings["model.architecture"]) for e in points] == [
        ("efficientnet_b0_rwightman-7f5810bc", "efficientnet_b0"),
        ("mobilenet_v2", "mobilenet_v2"),
        ("resnet18-f37072fd", "resnet18"),
    ]
    assert points[2].settings["model.weights"] == str(tmp_path / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match=r"no weights at hand in .*missing"):
        unfold(sweep(weights=[str(tmp_path / "missing")]), 1, {})


def test_a_backbones_cost_is_measured(tmp_path: Path) -> None:
    found = backbones.cost(tmp_path, "squeezenet1_1", 64)
    assert found["size_mb"] == pytest.approx(2.9, abs=0.1)
    assert found["latency_ms"] > 0


@pytest.mark.parametrize("name", READY)
def test_a_ready_sweep_makes_valid_params_and_names_stages_that_exist(name: str) -> None:
    base = read_yaml(ROOT / "params.yaml")
    known = set(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"])
    for experiment in unfold(load_sweep(name), 2, {}):
        params = Params.model_validate(overrides.applied(base, experiment.settings))
        assert experiment.target.partition("@")[0] in known
        assert any(recipe.seed == experiment.seed for recipe in params.train.values())


def test_the_four_ablations_of_the_chapter_are_there() -> None:
    assert {"freeze", "labels", "learning_rate", "source_class"} <= set(READY)
    head = next(e for e in unfold(load_sweep("source_class"), 1, {}) if "row" in e.name)
    params = overrides.applied(read_yaml(ROOT / "params.yaml"), head.settings)
    assert params["train"]["finetune"]["head"] == params["zero_shot"] == ["hotdog@934"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: name\n", "title: Field required"),
        ("title: T\nx: lr\n", "x or series is lr, which the points do not set"),
        ("title: T\nx: name\ngrid: {lr: []}\n", "grid.lr: List should have at least 1 item"),
        ("title: T\nx: name\npoints: [{name: a}]\nscores: [test_accuracy]\n", "scores.0: String should match pattern"),
        ("title: T\nx: name\nseed: 1\n", "seed: Extra inputs are not permitted"),
        ("- 1", "not a valid sweep"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sweep(str(tmp_path / "mine.yaml"))


def test_a_misspelt_key_is_told_once_with_how_many_points_have_it() -> None:
    base = read_yaml(ROOT / "params.yaml")
    grid = {"recipe.momentumm": [0.1, 0.2], "recipe.lr": [0.001, "banana"]}
    points = unfold(sweep(grid=grid, x="recipe.lr"), 1, {})
    with pytest.raises(ValueError, match=r"2 problem\(s\)") as caught:
        overrides.validate(ROOT, [(point.name, overrides.applied(base, point.settings)) for point in points])
    message = str(caught.value)
    assert "train.finetune.momentumm: unknown key" in message
    assert "(in 4 of 4 points, first toy-0.1-0.001-s0)" in message
    assert "train.finetune.lr: Input should be a valid number (found 'banana') (in 2 of 4" in message


def test_a_recipe_without_validation_cannot_be_ranked_and_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = read_yaml(ROOT / "params.yaml")
    base["train"]["finetune"]["validation"] = "none"
    monkeypatch.setattr(experiments, "params_at", lambda *_: base)
    points = unfold(sweep(grid={"recipe.lr": [0.1]}, x="recipe.lr"), 1, {})
    with pytest.raises(ValueError, match=r"train\.finetune\.validation is none.*add recipe.validation: holdout"):
        experiments.validate(ROOT, "HEAD", points)
    experiments.validate(
        ROOT, "HEAD", unfold(sweep(grid={"recipe.lr": [0.1]}, x="recipe.lr"), 1, {"recipe.validation": "holdout"})
    )


def test_dvc_and_we_set_params_alike_in_the_projects_own_file(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text())
    settings = {"train.scratch.lr": 0.00005, "train.finetune.head": ["hotdog@8"], "seed": 3}
    write_as_dvc(params, settings)
    assert read_yaml(params) == overrides.applied(read_yaml(ROOT / "params.yaml"), settings)


def test_what_is_set_is_all_that_changes_in_the_projects_own_file(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text())
    overrides.write(params, {"train.scratch.lr": 0.00007, "train.finetune.mixup": 0.2, "dataset.labels": "a.csv"})
    lines = ndiff((ROOT / "params.yaml").read_text().splitlines(), params.read_text().splitlines())
    changed = [line for line in lines if line.startswith(("+", "-"))]
    assert [line.partition("#")[0].rstrip() for line in changed] == [
        "-   labels: null", "+   labels: a.csv", "+     mixup: 0.2", "-     lr: 0.0005", "+     lr: 0.00007",
    ]  # fmt: skip


def test_what_one_recipe_has_from_another_is_not_changed_for_both(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("base: &base\n  crop: {least: 0.1}\nother:\n  <<: *base\n")
    with pytest.raises(ValueError, match=r"other\.crop\.least cannot be set without changing others; edit the file"):
        overrides.write(params, {"other.crop.least": 0.2})
    assert "least: 0.1" in params.read_text()


def test_a_key_that_leads_through_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seed\.lr: seed is 0 in params\.yaml, not a section"):
        overrides.applied({"seed": 0}, {"seed.lr": 1})


def test_a_hundred_thousand_points_are_unfolded_in_a_moment() -> None:
    chosen = sweep(grid={"recipe.lr": list(range(1, 1001)), "recipe.seed": list(range(100))}, x="recipe.lr")
    assert len(unfold(chosen, 1, {})) == 100_000


def test_an_unknown_sweep_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ValueError, match="no such sweep; there are backbones, freeze, labels, learning_rate, source_class"
    ):
        load_sweep("nothing")


def test_test_scores_are_named_only_where_the_winner_is_shown_or_a_promotion_is_judged() -> None:
    """Whatever ranks, chooses or plans in flows/ has no name of a test score in it."""
    names = re.compile(r"test_(accuracy|loss|ece)|predictions\.csv")
    files = [path for path in (ROOT / "flows").rglob("*.py") if names.search(path.read_text())]
    assert sorted(path.relative_to(ROOT).as_posix() for path in files) == [
        "flows/promote/measured.py",
        "flows/sweep/table.py",
    ]


def test_a_sweeps_runs_are_kept_without_what_a_stage_measured_on_test() -> None:
    measured = {"validation_loss": 0.5, "seconds": 3.0, "test_accuracy": 0.9, "roc_auc": 0.8, "threshold_accuracy": 0.7}
    assert ranking.without_test(measured) == {"validation_loss": 0.5, "seconds": 3.0}


def test_the_interval_is_students() -> None:
    low, high = table.mean_interval([0.8, 0.9, 1.0], "score")
    assert (low + high) / 2 == pytest.approx(0.9)
    assert (high - low) / 2 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert all(math.isnan(bound) for bound in table.mean_interval([0.8], "score"))


def test_a_row_has_the_mean_and_its_interval_within_what_the_score_can_be() -> None:
    unfolded = unfold(sweep(points=[{"lr": 0.00001}, {"lr": 1.0}], x="lr"), 2, {})
    metrics = {
        unfolded[0].name: {"validation_accuracy": 0.9, "validation_loss": 1.0},
        unfolded[1].name: {"validation_accuracy": 1.0, "validation_loss": 3.0},
    }
    first, second = table.summarize(unfolded, metrics, ["validation_accuracy", "validation_loss"])
    assert (first["lr"], first["seeds"], first["validation_accuracy"]) == (0.00001, 2, pytest.approx(0.95))
    assert first["validation_accuracy_high"] == 1.0
    assert (first["validation_loss_low"], first["validation_loss_high"]) == (0.0, pytest.approx(2 + 12.706205))
    assert (second["seeds"], second["validation_accuracy"], second["validation_accuracy_low"]) == (0, None, None)
    described = {"title": "Toy", "rows": [first, second], "finals": [], "winner": {}}
    text = table.as_markdown(described, ["validation_accuracy", "validation_loss"])
    assert "| 0.00001 | 1 | 2 | 0.950 (0.315 to 1.000) |" in text
    assert "| 1.0 | – | 0 | – | – |" in text
    assert table.as_csv([first, second]).startswith("lr,rank,seeds,validation_accuracy,validation_accuracy_low,")
    json.dumps([first, second], allow_nan=False)


def test_the_picture_has_a_line_a_series_and_points_without_x_across(tmp_path: Path) -> None:
    chosen = sweep(
        points=[{"name": "alone", "target": "zero_shot"}, {"name": "a"}, {"name": "b"}],
        grid={"recipe.lr": [0.1, 0.2]}, x="recipe.lr", series="name",
    )  # fmt: skip
    unfolded = unfold(chosen, 2, {})
    metrics = {e.name: {"validation_loss": 0.5 + 0.1 * e.seed} for e in unfolded}
    picture.draw(chosen, unfolded, metrics, "Winner: a", tmp_path)
    lines, across = picture._lines(chosen, unfolded)
    assert {name: list(line) for name, line in lines.items()} == {"a": ["0.1", "0.2"], "b": ["0.1", "0.2"]}
    assert list(across) == ["alone"]
    assert "<svg" in (tmp_path / "figure.svg").read_text()[:1000]
    first = (tmp_path / "figure.svg").read_bytes()
    picture.draw(chosen, unfolded, metrics, "Winner: a", tmp_path)
    assert (tmp_path / "figure.svg").read_bytes() == first


@pytest.mark.parametrize(
    ("threads", "free", "expected"),
    [
        (1, Memory(800, 0), 8),  # the cores
        (2, Memory(800, 0), 4),
        (1, Memory(35, 0), 3),  # the memory
        (1, Memory(5, 0), 1),
        (16, Memory(800, 0), 1),
    ],
)
def test_as_many_at_a_time_as_cores_and_memory_allow_but_one(threads: int, free: Memory, expected: int) -> None:
    assert capacity.jobs(Memory(10, 0), free, threads=threads, cores=8) == expected


def test_a_gpu_holds_as_many_as_its_memory_does() -> None:
    assert capacity.jobs(Memory(10, 30), Memory(800, 100), threads=1, cores=8) == 3


def test_free_gpu_memory_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert capacity.free_gpu_memory() == 0
    for text, expected in (("echo 1024", 2**30), ("echo '[N/A]'", 0), ("exit 9", 0)):
        smi.write_text(f"#!/bin/sh\n{text}\n")
        smi.chmod(0o755)
        assert capacity.free_gpu_memory() == expected
