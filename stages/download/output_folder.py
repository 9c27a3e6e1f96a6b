"""Write the stage's folders: one process at a time, each folder whole or absent."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.shared.files import path_in_errors


@contextmanager
def locked(cache: Path, what: str) -> Iterator[None]:
    """Wait until no other process downloads `what` into this checkout; a killed one lets go by itself."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{what}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is downloading the {what}; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it takes `target`'s place by renaming.

    What a killed run left beside is cleared first. Use it under `locked`: the names beside are fixed.
    """
    part, old = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.old.part")
    _clear(part, old)
    part.mkdir(parents=True)
    try:
        with path_in_errors(target):
            yield part
        if target.exists():
            target.replace(old)
        part.replace(target)
    finally:
        _clear(part, old)


def _clear(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
