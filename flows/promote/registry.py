"""Keep versions of the model as git tags that DVC's registry (GTO) reads: `model@v1.2.0`.

A tag is made and deleted by one atomic step of git's, and holds what was decided: a kill leaves the old or the new state, whole.
"""

import re
from pathlib import Path

from flows.project import git

NAME = "model"  # as dvc.yaml's `artifacts:` has it
TAG = re.compile(rf"^{NAME}@v(\d+)\.(\d+)\.(\d+)$")
Version = tuple[int, int, int]


def versions(project: Path) -> dict[str, str]:
    """Tag -> commit of every promoted version, the newest last."""
    listed = git(
        project, "for-each-ref", "--format=%(refname:strip=2) %(*objectname)%(objectname)", f"refs/tags/{NAME}@*"
    )
    rows = [line.split(" ", 1) for line in listed.splitlines()]
    tags = {tag: commits[:40] for tag, commits in rows if TAG.match(tag)}  # of an annotated tag first what it points at
    return dict(sorted(tags.items(), key=lambda item: _version(item[0])))


def current(project: Path) -> tuple[str, str] | None:
    """Tag and commit of the promoted version; None before the first."""
    found = list(versions(project).items())
    return found[-1] if found else None


def next_tag(project: Path) -> str:
    """The tag of the next version: v1.0.0, then one minor version more each time."""
    newest = current(project)
    major, minor, _ = _version(newest[0]) if newest else (1, -1, 0)
    return f"{NAME}@v{major}.{minor + 1}.0"


def promote(project: Path, tag: str, commit: str, message: str, git_remote: str | None = None) -> None:
    """Make `commit` the promoted version, by a tag."""
    who = [
        f"user.{key}={git(project, 'config', '--default', value, '--get', f'user.{key}')}" for key, value in COMMITTER
    ]
    identity = [word for setting in who for word in ("-c", setting)]
    git(project, *identity, "tag", "--annotate", "--message", message, tag, commit)
    if git_remote:
        try:
            git(project, "push", "--quiet", git_remote, f"refs/tags/{tag}")
            git(project, "update-ref", f"refs/shared/{tag}", f"refs/tags/{tag}")
        except ValueError:
            git(project, "tag", "--delete", tag)  # what the others do not see is not promoted
            raise


def fetch(project: Path, git_remote: str) -> None:
    """Take over the remote's versions, and delete those that it had and has no more; ours alone stay.

    refs/shared/ keeps what the remote has. Raises ValueError where a version of ours is another on the remote.
    """
    before, ours = _objects(project, "refs/shared"), _objects(project, "refs/tags")
    shared = f"+refs/tags/{NAME}@*:refs/shared/{NAME}@*"
    git(project, "fetch", "--quiet", "--no-write-fetch-head", "--no-tags", "--prune", git_remote, shared)
    theirs = _objects(project, "refs/shared")
    for tag in before.keys() - theirs.keys():
        if ours.get(tag) == before[tag]:
            git(project, "tag", "--delete", tag)
    for tag, found in theirs.items():
        if tag in ours and ours[tag] not in (found, before.get(tag)):
            raise ValueError(f"{tag} is another version on {git_remote}; `git tag --delete {tag}` lets go of this one")
        git(project, "update-ref", f"refs/tags/{tag}", found)


def _objects(project: Path, space: str) -> dict[str, str]:
    """Tag -> object of the versions below `space`."""
    listed = git(project, "for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", f"{space}/{NAME}@*")
    return dict(line.split(" ") for line in listed.splitlines())


def undo(project: Path, git_remote: str | None = None) -> tuple[str, str | None]:
    """Take the newest version back, on the remote too; returns its tag and the tag that is promoted now.

    Raises ValueError where there is none.
    """
    if git_remote:
        fetch(project, git_remote)
    tags = list(versions(project))
    if not tags:
        raise ValueError(f"{project}: nothing is promoted; git has no tag {NAME}@v…")
    if git_remote:
        git(project, "push", "--quiet", git_remote, f":refs/tags/{tags[-1]}")
        git(project, "update-ref", "-d", f"refs/shared/{tags[-1]}")
    git(project, "tag", "--delete", tags[-1])
    return tags[-1], tags[-2] if len(tags) > 1 else None


COMMITTER = (("name", "pipeline"), ("email", "pipeline@localhost"))  # where the project's git has none


def _version(tag: str) -> Version:
    found = TAG.match(tag)
    assert found, tag
    major, minor, patch = map(int, found.groups())
    return major, minor, patch
