"""Record what an export was made from: export.json, beside the files, whose bytes it would change."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from stages.shared.files import file_digest, read_json

PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "numpy")


def git_revision() -> dict[str, Any]:
    """The commit, and whether tracked files differ from it; both None outside a git work tree."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": None if commit is None or status is None else bool(status)}


def versions() -> dict[str, str]:
    # onnxruntime's distribution has another name for GPUs, so it is asked itself
    return {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__} | {
        name: version(name) for name in PACKAGES
    }


def digests(root: Path, paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """sha256 and size of each file, by its path under `root`."""
    return {
        path.relative_to(root).as_posix(): {"sha256": file_digest(path), "num_bytes": path.stat().st_size}
        for path in paths
    }


def read_source(path: Path) -> Mapping[str, Any] | None:
    """The download stage's record of its source; None where it did not run."""
    return read_json(path) if path.is_file() else None


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
