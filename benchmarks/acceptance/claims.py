"""A claim, what it was held against, and its verdict."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

HOLDS, FAILS, REPORTED = "holds", "fails", "reported"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Claim:
    claim: str
    measured: str
    verdict: str  # holds, fails, reported (no limit), or `not run: <why>`
    limit: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def report(claim: str, measured: str) -> Claim:
    return Claim(claim, measured, REPORTED)


def hold(claim: str, holds: bool, measured: str, limit: str = "") -> Claim:
    return Claim(claim, measured, HOLDS if holds else FAILS, limit)


def at_most(claim: str, value: float, limit: float) -> Claim:
    return hold(claim, value <= limit, f"{value:.3g}", f"≤ {limit:g}")


def failed(results: Mapping[str, Any], steps: Iterable[str]) -> list[str]:
    """The failures among `steps` of the results file: claims that do not hold, and steps that did not finish."""
    found = []
    for name in steps:
        step = results["steps"][name]
        if step["ended"] != "finished":
            found.append(f"{name}: {step['ended']}")
        found += [
            f"{name}: {claim['claim']}: {claim['measured']}" for claim in step["claims"] if claim["verdict"] == FAILS
        ]
    return found


def render(results: Mapping[str, Any]) -> str:
    """The table of all claims as Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    lines = [f"# Acceptance: {machine}", ""]
    if results["quick"]:
        lines += ["A dry run on small inputs: its numbers mean nothing.", ""]
    lines += ["| step | claim | limit | measured | verdict |", "| --- | --- | --- | --- | --- |"]
    for name, step in results["steps"].items():
        for claim in step["claims"]:
            lines.append(_line(name, claim["claim"], claim["limit"], claim["measured"], claim["verdict"]))
        lines.append(
            _line(
                name,
                "the whole step",
                f"{step['limit_s']} s",
                f"{step['seconds']:.0f} s, {step['date']}",
                step["ended"],
            )
        )
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
