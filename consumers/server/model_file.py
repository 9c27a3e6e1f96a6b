"""The model that is served, from a file that may be replaced: a newer one takes over once it has passed its checks."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consumers import predict


@dataclass(frozen=True)
class Loaded:
    model: predict.Model
    digest: str  # SHA-256 of the file


Stamp = tuple[int, int, int]  # of a file: it changes when the content does


def load(path: Path, provider: str) -> Loaded:
    """A model that answers. Raises predict.UsageError saying what is wrong with it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    model = predict.load_model(path, provider)
    side = model.side or 64
    images = [np.full((side, side, 3), level, np.uint8) for level in (0, 128, 255)]
    for batch in (images, images[:1]):  # and so what is compiled lazily is
        for result in predict.infer(model, batch):
            if isinstance(result, predict.ImageError):
                raise predict.UsageError(f"{path}: {result}")
            total = float(result.probabilities.sum())
            if not np.isfinite(result.probabilities).all() or abs(total - 1) > 1e-3:
                raise predict.UsageError(
                    f"{path}: its probabilities of a plain image add up to {total}; export it again"
                )
    return Loaded(model, digest)


def stamp(path: Path) -> Stamp | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


class ModelFile:
    """`current` is what to answer with. A newer file with other classes needs a restart: clients would misread it."""

    def __init__(self, path: Path, provider: str, poll: float) -> None:
        self.path, self.provider, self.poll = path, provider, poll  # seconds between looks at the file
        self.stamp = stamp(path)
        self.current = load(path, provider)

    async def watch(self, tell: Callable[[str, str], None]) -> None:
        """Look for a newer file for ever; `tell` is given the outcome, `loaded` or `refused`, and the digest or reason.

        It must look the same twice, so that a half-written one is left alone.
        """
        seen = self.stamp
        while True:
            await asyncio.sleep(self.poll)
            found = stamp(self.path)
            if found is not None and found != self.stamp and found == seen:
                self.stamp = found
                tell(*await asyncio.to_thread(self.replace))
            seen = found

    def replace(self) -> tuple[str, str]:
        try:
            newer = load(self.path, self.provider)
        except (predict.UsageError, OSError) as error:
            return "refused", str(error)
        if newer.model.class_names != self.current.model.class_names:
            return "refused", "it has other classes; restart the server to serve it"
        self.current = newer
        return "loaded", newer.digest
