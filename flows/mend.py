"""Clear away what a killed DVC left behind and stumbles over ever after: `python -m flows.mend`.

DVC writes dvc.lock and .dvc/tmp/rwlock in place, so that a kill in just that moment leaves them in pieces; killed just
before it notes a run, it leaves an empty folder, which it takes for a run; killed in a container whose first process reaps
no orphans, it stays a zombie, which the next DVC takes for one at work. And where DVC brings a killed stage's outs back from
its cache, what the stage had begun to write stays beside them. Nothing is lost with any of them: the run-cache knows the outs
of every run. A dvc.lock in pieces is kept in .cache/, and one that holds a merge conflict is a person's work
and stays where it is.
"""

import contextlib
import json
import re
import shutil
import time
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import psutil
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

FRESH = 2.0  # seconds
LEFT = (
    600.0  # seconds without a change, after which nobody writes it any more: a killed DVC's stage may be at work still
)
CONFLICT = re.compile(rb"^(<{7}|>{7}|\|{7})( |$)", re.MULTILINE)  # as git writes the sides of a conflict


def mend(root: Path) -> list[str]:
    """Clear away the pieces and say in words what was done: nothing while a DVC is at work, which may be half-way through a file.

    Raises ValueError where dvc.lock holds a merge conflict, or where there is no DVC project.
    """
    refuse_conflict(root / "dvc.lock")
    try:
        with Repo(str(root)) as repo:
            try:
                with repo.lock:
                    return _clear(repo, root)
            except LockError:
                return []
    except DvcException as error:
        raise ValueError(f"{root.resolve()}: {error}; run from the project's root, in a git clone") from None


def refuse_conflict(lock: Path) -> None:
    """Raises ValueError saying how to end the merge conflict in dvc.lock, where there is one."""
    if lock.exists() and CONFLICT.search(lock.read_bytes()):
        raise ValueError(
            f"{lock}: it holds a merge conflict, which was left as it is; take one side (`git checkout --ours dvc.lock` or "
            "`--theirs`), run `dvc repro`, which corrects it for the merged code, then `git add dvc.lock`"
        )


def _clear(repo: Repo, root: Path) -> list[str]:
    cleared = []
    lock, rwlock = root / "dvc.lock", root / ".dvc" / "tmp" / "rwlock"
    if lock.exists() and not _is_lock(repo, lock):
        kept = root / ".cache" / f"dvc.lock-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        kept.parent.mkdir(exist_ok=True)
        lock.rename(kept)
        cleared.append(f"dvc.lock (in pieces: kept as {kept.relative_to(root)}; `dvc repro` writes it anew)")
    holders = _holders(rwlock)
    if holders is None or (holders and not any(map(_is_running, holders))):
        rwlock.unlink()
        cleared.append(f".dvc/tmp/rwlock ({'in pieces' if holders is None else 'held by processes that have ended'})")
        holders = []
    if not holders:  # no stage is running
        cleared += _clear_parts(root)
    cleared += _clear_runs(Path(repo.cache.local_cache_dir or root / ".dvc" / "cache"))
    return cleared


def _clear_parts(root: Path) -> list[str]:
    """What stages had begun to write and nobody has changed for LEFT seconds."""
    cleared = []
    for part in chain.from_iterable((root / "artifacts").glob(f"{depth}.*.part") for depth in ("", "*/", "*/*/")):
        with contextlib.suppress(FileNotFoundError):  # it has got its name since
            if time.time() - max(entry.stat().st_mtime for entry in [part, *part.rglob("*")]) > LEFT:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
                cleared.append(f"{part.relative_to(root)} (half-written)")
    return cleared


def _clear_runs(cache: Path) -> list[str]:
    """Empty notes of runs."""
    cleared = []
    for folder in cache.glob("runs/*/*"):
        # Another clone that shares the cache may have made it just now, to fill it in the next moment.
        if not any(folder.iterdir()) and time.time() - folder.stat().st_mtime > FRESH:
            with contextlib.suppress(OSError):  # it has been filled since
                folder.rmdir()
                cleared.append(f"{folder.parent.name}/{folder.name} of the run-cache (empty)")
    return cleared


def _is_lock(repo: Repo, path: Path) -> bool:
    """Judge as DVC does: cut off between two lines it is YAML still, but not a lock."""
    try:
        Lockfile(repo, str(path)).load()
    except DvcException:
        return False
    return True


def _holders(rwlock: Path) -> list[int] | None:
    """PIDs in DVC's list of who reads and who writes which path; None where it is in pieces."""
    if not rwlock.exists():
        return []
    try:
        held = json.loads(rwlock.read_text(encoding="utf-8"))
        return [int(one["pid"]) for one in chain(held.get("write", {}).values(), *held.get("read", {}).values())]
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    try:
        for what in mend(Path()):
            print(f"cleared away: {what}")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
