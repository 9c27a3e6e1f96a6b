"""A scheduled run happens in a checkout apart and is handed back as a named DVC experiment.

The checkout is a clone under `.cache/nightly` that is set to the project's last commit before each run; it shares the
project's DVC cache, so a stage that ran anywhere is restored. HEAD, the index and every file of the project stay as
they are: only a reference under refs/exps is added. `dvc exp show` lists it, `dvc exp apply NAME` promotes it.
"""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from dvc.repo import Repo
from ruamel.yaml import YAML

from flows import supervise
from flows.pipeline.local_sources import KEYS

WORKSPACE = Path(".cache/nightly")


def prepare(project: Path, folder: Path = WORKSPACE, commit: str = "HEAD") -> Path:
    """The checkout, at a commit of the project's. Raises ValueError where there is none to take."""
    workspace = project / folder
    try:
        commit = _git(project, "rev-parse", "--verify", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{project}: a scheduled run needs a commit: {error.stderr.strip()}") from None
    if not (workspace / ".git").exists():
        shutil.rmtree(workspace, ignore_errors=True)
        _git(project, "clone", "--quiet", "--no-checkout", str(project), str(workspace))
    _git(workspace, "fetch", "--quiet", str(project), commit)
    _git(workspace, "checkout", "--quiet", "--force", "--detach", commit)
    _share_settings(project, workspace)
    _link_relative_sources(project, workspace)
    return workspace


def save(workspace: Path, project: Path, prefix: str) -> str:
    """Save the checkout's state as an experiment of the project, return its name: `nightly-20261123-020000`, in UTC."""
    name = f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    _dvc(workspace, "exp", "save", "--name", name)
    reference = _reference(workspace, name)
    _git(project, "fetch", "--quiet", str(workspace), f"{reference}:{reference}")
    return name


def newest(project: Path, git_remote: str) -> str:
    """The commit at the remote's HEAD, fetched; what the project has checked out stays. Raises ValueError where it cannot be had."""
    try:
        commit = _git(project, "ls-remote", git_remote, "HEAD").split()[0]
        _git(project, "fetch", "--quiet", "--no-write-fetch-head", git_remote, commit)
    except (subprocess.CalledProcessError, IndexError) as error:
        raise ValueError(f"{git_remote}: no commit to run: {getattr(error, 'stderr', '').strip()}") from None
    return commit


def push(workspace: Path, project: Path, name: str, git_remote: str) -> None:
    """Push the experiment to `git_remote`, and what it holds to the DVC remote. Raises RuntimeError."""
    reference = _reference(workspace, name)
    _dvc(project, "exp", "push", "--force", git_remote, reference)


def _share_settings(project: Path, workspace: Path) -> None:
    """The project's own DVC settings (remotes, passwords), its cache, and who commits."""
    for key, otherwise in (("user.name", "pipeline"), ("user.email", "pipeline@localhost")):
        _git(workspace, "config", key, _git(project, "config", "--default", otherwise, "--get", key))
    local = project / ".dvc/config.local"
    if local.exists():
        shutil.copyfile(local, workspace / ".dvc/config.local")
    with Repo(str(project)) as repo:
        cache = repo.cache.local_cache_dir
    with Repo(str(workspace)) as repo, repo.config.edit("local") as config:
        config.setdefault("cache", {})["dir"] = cache


def _link_relative_sources(project: Path, workspace: Path) -> None:
    """A source named by a path relative to the project, and not in git, is reached through a link."""
    params = YAML(typ="safe", pure=True).load(workspace / "params.yaml") or {}
    for section, key in KEYS.values():
        named = params[section][key] if isinstance(params.get(section), dict) else ""
        here, there = workspace / named, project / named
        if named and not Path(named).is_absolute() and there.exists() and not os.path.lexists(here):
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)


def _reference(workspace: Path, name: str) -> str:
    """Where git keeps an experiment that was made from the checkout's commit."""
    commit = _git(workspace, "rev-parse", "HEAD")
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"


def _dvc(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *words]
    process = supervise.start(command, grace=10, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        if code := process.wait():
            raise RuntimeError(f"{folder}: `dvc {' '.join(words)}` exited with {code}; its message is above")
    finally:
        supervise.stop(process, grace=10)


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()
