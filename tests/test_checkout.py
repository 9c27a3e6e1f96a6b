"""The checkout of a scheduled run: a commit's, with the project's own settings and sources, and nothing lost on a failure."""

import subprocess
from pathlib import Path

import pytest

from flows import checkout, dvc_experiments
from tests import toy_project

FOLDER = Path(".cache/nightly")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return toy_project.create(tmp_path / "toy")


def test_a_project_without_a_commit_is_told_that_it_needs_one(tmp_path: Path) -> None:
    toy_project.git(tmp_path, "init", "--quiet")
    with pytest.raises(ValueError, match="a run of a commit needs one"):
        checkout.prepare(tmp_path, FOLDER)
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("remote", ["nowhere", "empty.git"])
def test_a_remote_that_has_no_commit_is_named(toy: Path, remote: str) -> None:
    toy_project.git(toy, "init", "--quiet", "--bare", "empty.git")
    with pytest.raises(ValueError, match=f"{remote}: no commit to run"):
        checkout.newest(toy, remote)


def test_a_half_made_checkout_is_made_anew(toy: Path) -> None:
    (toy / FOLDER).mkdir(parents=True)
    (toy / FOLDER / "left").write_text("by a clone that was killed")
    workspace = checkout.prepare(toy, FOLDER)
    assert not (workspace / "left").exists()
    assert (workspace / "stage.py").read_text() == (toy / "stage.py").read_text()


def test_the_projects_own_dvc_settings_and_committer_go_along(toy: Path) -> None:
    settings = "['remote \"store\"']\n    url = https://host/store\n    password = known here\n"
    (toy / ".dvc/config.local").write_text(settings)
    workspace = checkout.prepare(toy, FOLDER)
    assert "password = known here" in (workspace / ".dvc/config.local").read_text()
    assert str(toy / ".dvc/cache") in (workspace / ".dvc/config.local").read_text()
    assert toy_project.git(workspace, "config", "user.name") == "Toy"
    assert "password" not in (toy / ".dvc/config").read_text()
    assert toy_project.git(workspace, "status", "--porcelain") == ""  # config.local is not for git


def test_a_source_by_relative_path_is_reached_through_a_link(toy: Path) -> None:
    (toy / "photos").mkdir()
    (toy / ".gitignore").write_text((toy / ".gitignore").read_text() + "/photos/\n")
    params = toy / "params.yaml"
    params.write_text(params.read_text().replace("source: synthetic", "source: photos"))
    toy_project.git(toy, "commit", "--quiet", "--all", "--message", "Own photos")
    for _ in range(2):  # the link of the last run is no obstacle
        workspace = checkout.prepare(toy, FOLDER)
        assert (workspace / "photos").resolve() == toy / "photos"


def test_an_experiment_that_cannot_be_saved_is_an_error_and_adds_no_reference(toy: Path) -> None:
    workspace = checkout.prepare(toy, FOLDER)
    (workspace / "dvc.yaml").write_text("stages: [")
    with pytest.raises(RuntimeError, match=r"`dvc exp save --name nightly-\d{8}-\d{6}` exited with"):
        dvc_experiments.save(workspace, toy, "nightly")
    listed = subprocess.run(["git", "for-each-ref", "refs/exps"], cwd=toy, capture_output=True, text=True, check=True)
    assert listed.stdout == ""
