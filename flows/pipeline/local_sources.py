"""Notice that a dataset folder or a weights file outside the project changed.

DVC watches only what is inside. params.yaml names such a path as text, so DVC sees the same text and calls the download unchanged. After each download a
fingerprint of the path (names, sizes, times of change) is kept; where it differs, the flow forces that download.
"""

import hashlib
import json
import os
from pathlib import Path

from flows.checkout import SOURCES, local_path
from flows.project import read_yaml

FINGERPRINTS = Path(".cache/local_sources.json")


def read(workspace: Path, project: Path) -> dict[str, str]:
    """Stage name -> fingerprint of the local path it copies; stages with a URL or a name are left out.

    A relative path is looked for in the workspace, then in the project it was made from.
    """
    params = read_yaml(workspace / "params.yaml")
    found = {}
    for stage, (section, key) in SOURCES.items():
        named = local_path(params, section, key)
        for path in (workspace / named, project / named):
            if named and path.exists():
                found[stage] = _fingerprint(path)
                break
    return found


def changed(workspace: Path, sources: dict[str, str], stage: str) -> bool:
    """True where the stage's local path differs from what it last copied, or where no flow has copied it yet."""
    return stage in sources and _recorded(workspace).get(stage) != sources[stage]


def remember(workspace: Path, sources: dict[str, str], stage: str) -> None:
    """Keep the fingerprint of what the stage has just copied."""
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
    """Digest the names, sizes and times of change of a file or of all files in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256(os.fsencode(path.resolve()))
    for file in files:
        facts = file.stat() if file.exists() else file.lstat()  # a dangling link has none but its own
        digest.update(os.fsencode(file.relative_to(path)) + f"\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()
