"""Remove what a killed DVC left behind and stumbles over ever after: `python -m flows.mend`.

DVC writes dvc.lock and .dvc/tmp/rwlock in place, so that a kill in just that moment leaves them in pieces; killed just
before it notes a run, it leaves an empty folder, which it takes for a run. Nothing is lost with any of them: the run-cache
knows the outs of every run.
"""

import json
from pathlib import Path

from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo


def mend(root: Path) -> list[str]:
    """What was removed, in words. Where a DVC is at work, nothing is: what it writes may be half-written rightly."""
    with Repo(str(root)) as repo:
        try:
            with repo.lock:
                return _remove_pieces(repo, root)
        except LockError:
            return []


def _remove_pieces(repo: Repo, root: Path) -> list[str]:
    removed = []
    lock, rwlock = root / "dvc.lock", root / ".dvc" / "tmp" / "rwlock"
    if lock.exists() and not _is_lock(repo, lock):
        lock.unlink()
        removed.append("dvc.lock (in pieces; `dvc repro` writes it anew)")
    if rwlock.exists() and not _is_json(rwlock):
        rwlock.unlink()
        removed.append(".dvc/tmp/rwlock (in pieces)")
    for folder in Path(repo.cache.local_cache_dir or root / ".dvc" / "cache").glob("runs/*/*"):
        if not any(folder.iterdir()):
            folder.rmdir()
            removed.append(f"{folder.parent.name}/{folder.name} of the run-cache (empty)")
    return removed


def _is_lock(repo: Repo, path: Path) -> bool:
    """As DVC judges it: cut off between two lines it is YAML still, but not a lock."""
    try:
        Lockfile(repo, str(path)).load()
    except DvcException:
        return False
    return True


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    for what in mend(Path()):
        print(f"removed {what}")
