"""Decide on a candidate, act on it, and write down what was decided and why."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.dvc_stages import claimed
from flows.project import git
from flows.promote import judge, measured, registry
from flows.settings import Promotion

OUTPUT = Path("artifacts/promotions")
LOST = "which is promoted, is not here: get its files by `dvc fetch --all-tags`, or take it back by --undo"


@dataclass(frozen=True)
class Decision:
    """The outcome for a candidate."""

    good: bool
    tag: str | None  # of the version that it became; None where it did not, or would have
    text: str  # for people


def decide(
    project: Path, experiment: str, rule: Promotion, *, dry_run: bool = False, git_remote: str | None = None
) -> Decision:
    """Judge the experiment's model against the promoted one and promote it where it is good enough.

    The tag comes first and holds the reasons; the files below artifacts/promotions/ repeat them. Raises ValueError where the
    experiment is unknown or not a finished run.
    """
    with claimed(project / ".cache/promote.lock"):
        if git_remote:
            registry.fetch(project, git_remote)
        commit = _commit(project, experiment)
        promoted = registry.current(project)
        if promoted and promoted[1] == commit:
            return Decision(True, promoted[0], f"{experiment} is promoted already, as {promoted[0]}")
        candidate = _read(project, commit, "promote a finished run of every stage")
        before = _read(project, promoted[1], f"{promoted[0]}, {LOST}") if promoted else None
        checks = judge.judge(candidate, before, rule)
        good = all(check.passed for check in checks)
        tag = registry.next_tag(project) if good else None
        text = _text(experiment, promoted[0] if promoted else None, tag, checks, dry_run)
        if not dry_run:
            if tag:
                registry.promote(project, tag, commit, text, git_remote)
            _write(project, experiment, text, {"tag": tag, "commit": commit, "checks": judge.as_rows(checks)})
        return Decision(good, None if dry_run else tag, text)


def was_judged(project: Path, experiment: str) -> bool:
    """Whether a decision on it was written, of whatever outcome, taken back since or not."""
    written = (project / OUTPUT).glob(f"*-{_file_name(experiment)}.json")
    return any(json.loads(path.read_text(encoding="utf-8"))["experiment"] == experiment for path in written)


def _file_name(experiment: str) -> str:
    return experiment.replace("/", "_")


def _commit(project: Path, experiment: str) -> str:
    """The commit that an experiment's name, or any revision, stands for."""
    listed = git(project, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
    found = [line.split()[0] for line in listed.splitlines() if line.split()[1].rpartition("/")[2] == experiment]
    if len(set(found)) > 1:
        raise ValueError(
            f"{experiment}: several experiments have this name; name its commit (`dvc exp list --sha-only`)"
        )
    try:
        return found[0] if found else git(project, "rev-parse", "--verify", f"{experiment}^{{commit}}")
    except ValueError:
        raise ValueError(
            f"{experiment}: no such experiment or commit; `dvc exp list --all-commits` shows them,"
            f" `dvc exp pull origin {experiment}` brings another clone's"
        ) from None


def _read(project: Path, revision: str, advice: str) -> measured.Measured:
    try:
        return measured.read(project, revision)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from None


def _text(experiment: str, before: str | None, tag: str | None, checks: list[judge.Check], dry_run: bool) -> str:
    failed = [check.name for check in checks if not check.passed]
    promoted, refused = ("would be", "would not be") if dry_run else ("is", "is not")
    verdict = (
        f"{experiment} {promoted} promoted as {tag}" if tag else f"{experiment} {refused} promoted: {', '.join(failed)}"
    )
    against = f"against {before}" if before else "the first version: nothing to compare with"
    return f"{verdict} ({against})\n\n{judge.as_markdown(checks)}"


def _write(project: Path, experiment: str, text: str, facts: dict[str, object]) -> None:
    folder = project / OUTPUT
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{_file_name(experiment)}"
    for suffix, content in ((".json", json.dumps({"experiment": experiment, **facts}, indent=2)), (".md", text)):
        part = folder / f".{name}{suffix}.part"
        part.write_text(content + "\n", encoding="utf-8")
        part.replace(folder / f"{name}{suffix}")
