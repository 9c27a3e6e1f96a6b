"""Judge a candidate against the promoted model by a rule, on the same test images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.promote.measured import Image, Measured
from flows.settings import Promotion

Z = 1.959964  # 95 %


@dataclass(frozen=True)
class Check:
    """One condition of the rule: what was found and what was allowed, in words."""

    name: str
    passed: bool
    found: str
    allowed: str


def judge(candidate: Measured, promoted: Measured | None, rule: Promotion) -> list[Check]:
    """Every condition of the rule; the candidate is good enough where all have passed. Without a promoted model, parity alone."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in candidate.parity.items())
    parity = Check("parity", candidate.parity["failed"] == 0 < candidate.parity["passed"], counts, "none failed")
    if promoted is None:
        return [parity]
    return [parity, *_accuracy(candidate, promoted, rule), *_costs(candidate, promoted, rule)]


def correct(measured: Measured, labels: Mapping[Image, str]) -> dict[Image, bool]:
    """Whether each answer is right by `labels`: both models are judged by the candidate's, which a fix list may have mended."""
    return {image: answer == labels[image] for image, answer in measured.answers.items() if image in labels}


def paired(candidate: Mapping[Image, bool], promoted: Mapping[Image, bool]) -> tuple[float, float, float]:
    """Difference in accuracy on the images that both were tested on, with its 95 % interval (Agresti and Min, 2005).

    Raises ValueError where there is none.
    """
    shared = candidate.keys() & promoted.keys()
    if not shared:
        raise ValueError("the two models share no test image: evaluate the promoted one's params on the new data first")
    gained = sum(candidate[image] and not promoted[image] for image in shared)
    lost = sum(promoted[image] and not candidate[image] for image in shared)
    more, fewer, total = gained + 0.5, lost + 0.5, len(shared) + 2
    center = (more - fewer) / total
    margin = Z * math.sqrt((more + fewer) / total - center**2) / math.sqrt(total)
    return (gained - lost) / len(shared), max(-1.0, center - margin), min(1.0, center + margin)


def class_changes(candidate: Measured, promoted: Measured) -> dict[str, float]:
    """Change in recall of each class, on the images that both were tested on."""
    after, before = correct(candidate, candidate.labels), correct(promoted, candidate.labels)
    shared = after.keys() & before.keys()
    changes = {}
    for name in sorted({candidate.labels[image] for image in shared}):
        images = [image for image in shared if candidate.labels[image] == name]
        net = sum(after[image] - before[image] for image in images)
        changes[name] = net / len(images)
    return changes


def _accuracy(candidate: Measured, promoted: Measured, rule: Promotion) -> list[Check]:
    after, before = correct(candidate, candidate.labels), correct(promoted, candidate.labels)
    difference, low, high = paired(after, before)
    shared = len(after.keys() & before.keys())
    found = f"{difference:+.3f} ({low:+.3f} to {high:+.3f}) on {shared} shared test images"
    changes = class_changes(candidate, promoted)
    worst = min(changes, key=lambda name: changes[name])
    limit = rule.max_accuracy_loss
    return [
        Check("accuracy", low >= -limit, found, f"lower end of the 95 % interval at least {-limit:+.3f}"),
        Check(
            "recall of each class",
            changes[worst] >= -rule.max_class_loss,
            f"worst: {worst} {changes[worst]:+.3f}",
            f"at least {-rule.max_class_loss:+.3f}",
        ),
    ]


def _costs(candidate: Measured, promoted: Measured, rule: Promotion) -> list[Check]:
    checks = [
        Check(
            "calibration error (ECE)",
            candidate.ece <= promoted.ece + rule.max_ece_rise,
            f"{candidate.ece:.3f}, promoted {promoted.ece:.3f}",
            f"at most {rule.max_ece_rise:.3f} more",
        ),
        _ratio("size", candidate.num_bytes / 1e6, promoted.num_bytes / 1e6, "MB", rule.max_size_ratio),
    ]
    if candidate.latency_ms is None or promoted.latency_ms is None:
        return [*checks, Check("latency", True, "not measured for both", "compared where it was measured")]
    return [*checks, _ratio("latency", candidate.latency_ms, promoted.latency_ms, "ms", rule.max_latency_ratio)]


def _ratio(name: str, candidate: float, promoted: float, unit: str, limit: float) -> Check:
    found = f"{candidate:.1f} {unit}, promoted {promoted:.1f} {unit}"
    return Check(name, candidate <= limit * promoted, found, f"at most {limit:g} times as much")


def as_markdown(checks: list[Check]) -> str:
    rows = [["condition", "found", "allowed", "verdict"], ["---"] * 4]
    rows += [[c.name, c.found, c.allowed, "passed" if c.passed else "**failed**"] for c in checks]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_rows(checks: list[Check]) -> list[dict[str, Any]]:
    return [vars(check) for check in checks]
