"""Make a checkout of its own for a run that must not touch the project.

It is a clone below .cache/, set to one commit. It shares the project's DVC cache, so that a stage that ran anywhere is restored, and the project's own DVC settings.
HEAD, the index and every file of the project stay as they are.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from flows.project import git, read_yaml

# The params that may name a local path, by the stage that reads it.
SOURCES = {
    "download@dataset": ("dataset", "source"),
    "download@model": ("model", "weights"),
    "monitor": ("monitor", "source"),
}


def prepare(project: Path, folder: Path, commit: str = "HEAD") -> Path:
    """Set the checkout in `folder` of the project to a commit of the project's, make it first where it is missing.

    Raises ValueError where there is no such commit.
    """
    workspace = project / folder
    try:
        commit = git(project, "rev-parse", "--verify", f"{commit}^{{commit}}")
    except ValueError as error:
        raise ValueError(f"{project}: a run of a commit needs one: {error}") from None
    if not (workspace / ".git").exists():
        shutil.rmtree(workspace, ignore_errors=True)
        git(project, "clone", "--quiet", "--no-checkout", str(project), str(workspace))
    git(workspace, "fetch", "--quiet", str(project), commit)
    git(workspace, "checkout", "--quiet", "--force", "--detach", commit)
    _share_settings(project, workspace)
    _link_relative_sources(project, workspace)
    return workspace


def newest(project: Path, git_remote: str) -> str:
    """Fetch the commit at the remote's HEAD and return it; what the project has checked out stays.

    Raises ValueError where the remote has none.
    """
    try:
        commit = git(project, "ls-remote", git_remote, "HEAD").split()[0]
        git(project, "fetch", "--quiet", "--no-write-fetch-head", git_remote, commit)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{git_remote}: no commit to run: {error}") from None
    return commit


def local_path(params: Any, section: str, key: str) -> str:
    """The text that may be a path: `params[section][key]` without a checksum, empty where there is no such key."""
    values = params.get(section) if isinstance(params, Mapping) else None
    return re.sub(r"#\w+=[0-9a-fA-F]+$", "", str(values.get(key) or "")) if isinstance(values, Mapping) else ""


def _share_settings(project: Path, workspace: Path) -> None:
    """Take over the project's own DVC settings (remotes, passwords), its cache, and who commits."""
    for key, otherwise in (("user.name", "pipeline"), ("user.email", "pipeline@localhost")):
        git(workspace, "config", key, git(project, "config", "--default", otherwise, "--get", key))
    local = project / ".dvc/config.local"
    if local.exists():
        shutil.copyfile(local, workspace / ".dvc/config.local")
    with Repo(str(project)) as repo:
        cache = repo.cache.local_cache_dir
    with Repo(str(workspace)) as repo, repo.config.edit("local") as config:
        config.setdefault("cache", {})["dir"] = cache


def _link_relative_sources(project: Path, workspace: Path) -> None:
    """Reach a source that is named by a path relative to the project, and not in git, through a link."""
    params = read_yaml(workspace / "params.yaml")
    for section, key in SOURCES.values():
        named = local_path(params, section, key)
        here, there = workspace / named, project / named
        if named and not Path(named).is_absolute() and there.exists() and not os.path.lexists(here):
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)
