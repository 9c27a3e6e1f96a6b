"""Propose a fix list from the report: python -m stages.inspect --write fixes.yaml; a person edits it before it is used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from stages.shared.files import replacing

HEADER = """\
Proposed by python -m stages.inspect --write. Look at every entry, delete those that are wrong, then set dataset.fixes.
action: drop, relabel (to label), or move (to split: train or test).
"""


def propose(report: Mapping[str, Any], digests: Mapping[str, str]) -> list[dict[str, str]]:
    """Entries for preprocess, one a file: leaks and blank pictures are dropped, labels that contradict are changed."""
    entries: dict[str, dict[str, str]] = {}
    for leak in report["leaks"]:
        entries.setdefault(leak["train"], {"action": "drop", "reason": f"near-duplicate of {leak['test']}"})
    for train in report["copies_of_leaks"]:
        entries.setdefault(train, {"action": "drop", "reason": "near-duplicate of one that shows a test picture"})
    for picture in report["odd"]:
        if "blank" in picture["reasons"]:  # the other odd ones may well show what they should
            entries.setdefault(picture["file"], {"action": "drop", "reason": "blank"})
    for issue in report["label_issues"]:
        reason = f"labelled {issue['given']}, surer by {issue['confidence']:.2f}"
        entries.setdefault(issue["file"], {"action": "relabel", "label": issue["proposed"], "reason": reason})
    return [{"file": file, "sha256": digests[file], **entry} for file, entry in entries.items()]


def check_free(path: Path) -> None:
    """Raise ValueError where there is a file already that says something: it may be a person's work."""
    try:
        written = YAML().load(path) if path.exists() else None
    except YAMLError as error:
        raise ValueError(
            f"{path}: is there already and is no YAML ({error}); write the proposals to another file"
        ) from None
    if written:
        raise ValueError(f"{path}: holds entries already; write the proposals to another file and merge them by hand")


def write_proposals(path: Path, entries: list[dict[str, str]]) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in HEADER.splitlines())
        YAML().dump(entries, file)
