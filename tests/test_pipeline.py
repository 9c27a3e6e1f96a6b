"""The main job, end to end under DVC: params.yaml in, a verified ONNX model out, and nothing run twice."""

import contextlib
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import networkx
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.experiment import ROOT, TINY, dvc, git, make_project, stage

SCRATCH_AND_AFTER = [
    "train@scratch", "evaluate@scratch", "compare", "select", "export", "check_parity", "monitor", "report",
]  # fmt: skip


def ran(output: str) -> list[str]:
    return re.findall(r"^Running stage '(.+)':", output, re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """From shards; other tests run all stages from decoded images. Of a network whose answers differ after two epochs."""
    own = {"preprocess.store": "encoded", "model.architecture": "resnet18"}
    folder = make_project(tmp_path_factory.mktemp("tiny"), TINY | own)
    dvc(folder, "repro")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Run")
    return folder


def test_every_artifact_is_there(project):
    for name in (
        "model.onnx", "comparison.json", "comparison.md", "comparison.png", "parity.json", "parity.md", "report.html",
        "export/core.onnx", "export/export.json", "MODEL_CARD.md", "evaluate/finetune/predictions.csv",
    ):  # fmt: skip
        assert (project / "artifacts" / name).stat().st_size > 0, name


def test_comparison_has_a_complete_entry_a_recipe(project):
    entries = json.loads((project / "artifacts/comparison.json").read_text())
    assert [entry["recipe"] for entry in entries] == ["finetune", "scratch", "tuned"]
    for entry in entries:
        for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "examples_per_second", "seconds"):
            assert entry[key] >= 0, key
        assert entry["device"].startswith(("cpu", "cuda"))
        published = entry["published"] and entry["published"]["test_accuracy"]
        assert published == {"finetune": 0.880, "scratch": 0.849}.get(entry["recipe"])


def test_parity_passes_on_the_cpu_and_says_what_was_not_run(project):
    rows = json.loads((project / "artifacts/parity.json").read_text())["rows"]
    verdicts = {row["verdict"] for row in rows}
    assert "passed" in verdicts
    assert "failed" not in verdicts
    assert all(verdict == "passed" or verdict.startswith("not run") for verdict in verdicts)


def test_a_second_repro_runs_nothing(project):
    assert ran(dvc(project, "repro")) == []
    assert dvc(project, "status").strip() == "Data and pipelines are up to date."


def test_only_scratch_and_what_depends_on_it_reads_scratchs_params(project):
    with contextlib.chdir(project), Repo() as repo:
        graph = repo.index.graph  # an edge leads from a stage to its upstream
        readers = [stage for stage in graph if {"train", "train.scratch"} & set(params_of(stage))]
        found = {above.name for stage in readers for above in (stage, *networkx.ancestors(graph, stage))}
    assert found == set(SCRATCH_AND_AFTER)


def params_of(stage) -> list[str]:
    return [key for dep in stage.params for key in dep.params]


def test_an_experiment_runs_what_its_setting_changes_and_is_shown_beside_the_first(project):
    output = dvc(project, "exp", "run", "-n", "few-bins", "-S", "evaluate.calibration_bins=3")
    evaluations = {f"evaluate@{recipe}" for recipe in ("finetune", "scratch", "tuned")}
    assert set(ran(output)) == evaluations | {"compare", "report"}

    metrics = json.loads(dvc(project, "metrics", "diff", "--json"))["artifacts/metrics.json"]
    assert {key.split(".")[1] for key in metrics} == {"test_ece"}
    shown = shlex.split(re.search(r"dvc (exp show .*)", (ROOT / "Makefile").read_text())[1])
    screen = dvc(project, *shown).splitlines()
    assert any("few-bins" in line and "3" in line for line in screen)
    assert max(map(len, screen)) <= 120

    git(project, "checkout", "-q", "--", ".")
    dvc(project, "checkout")


@pytest.mark.slow
def test_another_scratch_lr_reruns_scratch_and_what_depends_on_it(project):
    output = dvc(project, "exp", "run", "-n", "other-lr", "-S", "train.scratch.lr=0.001")
    assert sorted(ran(output)) == sorted(SCRATCH_AND_AFTER)
    metrics = json.loads(dvc(project, "metrics", "diff", "--json"))
    assert {key.split(".")[0] for key in metrics["artifacts/metrics.json"]} == {"scratch"}
    git(project, "checkout", "-q", "--", ".")
    dvc(project, "checkout")


def test_what_dvc_compares_is_a_few_numbers(project):
    (metrics,) = json.loads(dvc(project, "metrics", "show", "--json"))[""]["data"].values()
    recipes = {entry["recipe"] for entry in json.loads((project / "artifacts/comparison.json").read_text())}
    assert set(metrics["data"]) == recipes | {"parity"}
    assert {"test_accuracy", "test_loss", "roc_auc", "test_ece", "examples_per_second"} <= set(
        metrics["data"]["finetune"]
    )


def test_plots_can_be_shown(project):
    dvc(project, "plots", "show", "-o", "plots")
    assert (project / "plots/index.html").stat().st_size > 0


def test_two_runs_of_an_experiment_give_the_same_checkpoint(project):
    path = project / "artifacts/train/scratch/metrics.json"
    digest = json.loads(path.read_text())["weights_digest"]
    assert stage(project, "train", "scratch").returncode == 0
    assert json.loads(path.read_text())["weights_digest"] == digest
    dvc(project, "checkout", "--force")


def test_dvc_finds_the_projects_python_without_an_activated_environment(tmp_path):
    folder = make_project(tmp_path / "fresh", TINY)
    (folder / ".venv").symlink_to(sys.prefix)
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "dvc", "repro", "download@dataset"]
    done = subprocess.run(command, cwd=folder, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "artifacts/download/dataset/source.json").exists()


def test_no_stage_has_written_into_an_out_that_is_a_link_to_dvcs_cache(project):
    """The last of many runs: an object that was changed through its link no longer has its name's digest."""
    assert (project / "artifacts/model.onnx").stat().st_nlink > 1
    assert (project / "artifacts/preprocess/test/images/shard-000.bin").stat().st_nlink > 1  # a folder's files too
    objects = [path for path in (project / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert len(objects) > 20
    for path in objects:
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        assert digest == f"{path.parent.name}{path.stem}", path


@pytest.mark.slow
def test_a_third_recipe_is_added_by_params_alone(project):
    params = project / "params.yaml"
    values = YAML(typ="safe").load(params)
    own = {"freeze": "backbone", "lr": 0.001, "head_lr_multiplier": 1, "weight_decay": 0.0}
    values["train"]["probe"] = values["train"]["finetune"] | own
    with params.open("w") as file:
        YAML(typ="safe").dump(values, file)
    output = dvc(project, "repro", "compare")
    assert sorted(ran(output)) == ["compare", "evaluate@probe", "train@probe"]
    entries = json.loads((project / "artifacts/comparison.json").read_text())
    assert {entry["recipe"] for entry in entries} == {"probe", "finetune", "scratch", "tuned"}
    git(project, "checkout", "-q", "--", ".")
    dvc(project, "checkout", "--force")


def test_a_wrong_value_stops_before_any_work(project):
    output = dvc(project, "exp", "run", "-S", "train.scratch.batch_size=0", check=False)
    assert "train.scratch.batch_size: Input should be greater than or equal to 1" in output
    git(project, "checkout", "-q", "--", ".")
    dvc(project, "checkout", "--force")


def test_an_unknown_recipe_is_named(project):
    done = stage(project, "train", "finetoon")
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "error: params.yaml has no recipe 'finetoon' under train; run python -m stages.train with one of finetune, scratch, tuned"
    )
