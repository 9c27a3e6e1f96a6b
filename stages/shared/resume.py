"""The resume file of a training: what it needs to go on after its last epoch, bit for bit on a CPU."""

import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stages.shared.files import replacing


@dataclass
class ResumeFile:
    path: Path
    tensors: Sequence[torch.Tensor]  # every one that training changes
    save_every: float  # seconds: what a crash may cost; writing takes longer than a short epoch
    saved: float = field(default_factory=time.monotonic)

    def save(self, history: list[dict[str, Any]]) -> None:
        """Write the state after the epochs of `history`, unless that was done less than `save_every` seconds ago."""
        if time.monotonic() - self.saved < self.save_every:
            return
        buffer = io.BytesIO()
        torch.save({"tensors": [tensor.detach() for tensor in self.tensors], "history": history}, buffer)
        content = buffer.getvalue()
        with replacing(self.path) as part:
            part.write_bytes(hashlib.sha256(content).digest() + content)
        self.saved = time.monotonic()

    def load(self) -> list[dict[str, Any]]:
        """The history of the epochs done; the tensors are as they were after the last of them. Empty where there is no whole file."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        if (
            hashlib.sha256(content[32:]).digest() != content[:32]
        ):  # torch itself reads some damaged files without a word
            print(
                f"{self.path}: damaged, as by a power cut while it was written; starting from the first epoch",
                flush=True,
            )
            return []
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
        with torch.no_grad():
            for own, saved in zip(self.tensors, state["tensors"], strict=True):
                own.copy_(saved)
        print(f"resuming after epoch {len(state['history'])} ({self.path})", flush=True)
        return state["history"]
