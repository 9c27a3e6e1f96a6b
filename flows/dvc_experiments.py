"""Handle DVC experiments as the git references they are: name, list, save, push, pull."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from flows.project import dvc, git


def namespace(commit: str) -> str:
    """The start of every reference to an experiment that was made from `commit`."""
    return f"refs/exps/{commit[:2]}/{commit[2:]}/"


def reference(commit: str, name: str) -> str:
    """The git reference of the experiment."""
    return f"{namespace(commit)}{name}"


def revisions(project: Path, commit: str) -> dict[str, str]:
    """The experiments made from `commit`: name -> revision."""
    listed = git(project, "for-each-ref", "--format=%(objectname) %(refname)", namespace(commit))
    rows = [line.split(" ", 1) for line in listed.splitlines()]
    return {name.removeprefix(namespace(commit)): revision for revision, name in rows}


def save(workspace: Path, project: Path, prefix: str) -> str:
    """Save a checkout's state as an experiment of the project, return its name: `nightly-20261123-020000`, in UTC."""
    name = f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    dvc(workspace, "exp", "save", "--name", name)
    hand_over(workspace, project, git(workspace, "rev-parse", "HEAD"), name)
    return name


def same_as(workspace: Path, project: Path, prefix: str) -> str | None:
    """The project's newest experiment of this prefix, if its params and results are the checkout's."""
    listed = git(project, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    names = {ref.rpartition("/")[2]: ref for ref in listed}
    newest = max((name for name in names if re.fullmatch(rf"{re.escape(prefix)}-\d{{8}}-\d{{6}}", name)), default=None)
    if newest is None:
        return None
    for file in ("params.yaml", "dvc.lock"):
        try:
            then = git(project, "show", f"{names[newest]}:{file}")
        except ValueError:  # an experiment without results
            return None
        if then != (workspace / file).read_text(encoding="utf-8").strip():
            return None
    return newest


def hand_over(workspace: Path, project: Path, commit: str, name: str) -> None:
    """Add a checkout's experiment to the project, in place of one of the same name."""
    made = reference(commit, name)
    git(project, "fetch", "--quiet", "--no-write-fetch-head", str(workspace), f"+{made}:{made}")


def push(project: Path, commit: str, name: str, git_remote: str) -> None:
    """Push the experiment to `git_remote`, and what it holds to the DVC remote. Raises RuntimeError."""
    dvc(project, "exp", "push", "--force", "--run-cache", git_remote, reference(commit, name))


def pull(project: Path, names: Iterable[str], commit: str, git_remote: str) -> None:
    """Fetch those of the experiments that `git_remote` has, and what they hold from the DVC remote."""
    wanted = {reference(commit, name) for name in names}
    listed = git(project, "ls-remote", git_remote, f"{namespace(commit)}*")
    there = [line.split("\t")[1] for line in listed.splitlines()]
    if found := sorted(wanted.intersection(there)):
        dvc(project, "exp", "pull", "--force", git_remote, *found)
