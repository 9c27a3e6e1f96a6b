"""Notice that a dataset folder or a weights file outside the project changed; DVC watches only what is inside.

params.yaml names such a path as text, so DVC sees the same text and calls the download unchanged. After each download a
fingerprint of the path (names, sizes, times of change) is kept; where it differs, the flow forces that download.
"""

import hashlib
import json
from pathlib import Path

from ruamel.yaml import YAML

KEYS = {"download@dataset": ("dataset", "source"), "download@model": ("model", "weights")}
FINGERPRINTS = Path(".cache/local_sources.json")


def read(workspace: Path, project: Path) -> dict[str, str]:
    """Stage name -> fingerprint of the local path it copies; stages with a URL or a name are left out.

    A relative path is looked for in the workspace, then in the project it was made from.
    """
    params = YAML(typ="safe", pure=True).load(workspace / "params.yaml") or {}
    found = {}
    for stage, (section, key) in KEYS.items():
        named = str(params.get(section, {}).get(key, "")) if isinstance(params.get(section), dict) else ""
        for path in (workspace / named, project / named):
            if named and path.exists():
                found[stage] = _fingerprint(path)
                break
    return found


def changed(workspace: Path, sources: dict[str, str], stage: str) -> bool:
    """Whether the stage's local path differs from what it last copied; a path never copied by a flow does."""
    return stage in sources and _recorded(workspace).get(stage) != sources[stage]


def remember(workspace: Path, sources: dict[str, str], stage: str) -> None:
    if stage in sources:
        path = workspace / FINGERPRINTS
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({**_recorded(workspace), stage: sources[stage]}), encoding="utf-8")
        part.replace(path)


def _recorded(workspace: Path) -> dict[str, str]:
    try:
        recorded: dict[str, str] = json.loads((workspace / FINGERPRINTS).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # nothing remembered: the source counts as changed
    return recorded


def _fingerprint(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256(str(path.resolve()).encode())
    for file in files:
        facts = file.stat()
        digest.update(f"{file.relative_to(path)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()
