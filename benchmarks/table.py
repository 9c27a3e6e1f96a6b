"""The results as Markdown: one row of issue 3's table a line, CUDA and CPU side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NOT_MEASURED = "not measured"


class Target(NamedTuple):
    text: str
    limit: float | None = None  # None: only reported
    at_most: bool = False


REPORT = Target("report")
NONE = Target("-")
ROWS: list[tuple[str, str, Target, Target]] = [  # name, title, target on CUDA (H200), target on a CPU
    ("d2l_timer", "d2l's loop as published (float32, NCHW, PIL, DataLoader): its own timer", Target("≥ 3×", 3), Target("≥ 2.4×", 2.4)),
    ("d2l_end_to_end", "the same, end to end", Target("≥ 30×", 30), Target("≥ 2.4×", 2.4)),
    ("torchvision_timer", "torchvision references' way (workers, AMP, channels last): batch to loss", Target("≥ 1.5×", 1.5), NONE),
    ("torchvision_end_to_end", "the same, end to end", Target("≥ 1.5×", 1.5), NONE),
    ("timm_timer", "timm's way (uint8 collate, prefetch, AMP, channels last, compile): batch to loss", Target("≥ 1.2×", 1.2), NONE),
    ("timm_end_to_end", "the same, end to end", Target("≥ 1.2×", 1.2), NONE),
    ("resident", "our step over the same step on one resident random batch", Target("≥ 0.97", 0.97), Target("≥ 0.95", 0.95)),
    ("roofline", "roofline: H200's per-kernel floor; on a CPU, the rate of 3×3 convolutions alone", Target("≥ 0.5, aim 0.65", 0.5), Target("≥ 0.65", 0.65)),
    ("data_path", "data path alone / step", Target("≤ 0.03", 0.03, at_most=True), REPORT),
    ("compiled", "our step compiled over the default", REPORT, NONE),
    ("evaluation_eager", "evaluation (`evaluate.execution: fast`) against float32 eager", REPORT, Target("≥ 3.5×", 3.5)),
    ("evaluation_onnxruntime", "the same, against ONNX Runtime", REPORT, Target("≥ 1.6×", 1.6)),
    ("startup", "start of process to final metrics", REPORT, REPORT),
    ("growth_images", "cost of an image as images grow 1×, 4×, 16×", Target("within 5 %", 0.05, at_most=True), Target("within 10 %", 0.10, at_most=True)),
    ("growth_processes", "cost of an image on 1, 2, 4 processes", Target("within 5 %", 0.05, at_most=True), Target("within 10 %", 0.10, at_most=True)),
]  # fmt: skip

PUBLISHED = [
    ("d2l, ResNet-18 fine-tuned / from scratch, 224 px, one CUDA GPU, its own timer", "1876.0 / 2093.3"),
    ("ffcv-imagenet, ResNet-18, 160-192 px, one A100, average", "9,800"),
    ("timm, ResNet-18, 224 px, RTX 3090, AMP, channels last, training", "3,482"),
    ("timm, ResNet-18, 224 px, RTX 4090, compiled, inference", "25,900"),
]


def render(cuda: Mapping[str, Any] | None, cpu: Mapping[str, Any] | None) -> str:
    """Markdown of both results (each as __main__ writes it, or None)."""
    lines = [
        "| | target, CUDA (H200) | CUDA | target, CPU | CPU |",
        "| --- | --- | --- | --- | --- |",
        *(_line(*row, cuda, cpu) for row in ROWS),
        "",
        *(_device(kind, result) for kind, result in (("CUDA", cuda), ("CPU", cpu))),
        "",
        "Ratios are medians over interleaved rounds, in brackets ours and theirs in images/s. **Bold** misses its target.",
        "",
        "| published by the peers, on other machines | images/s |",
        "| --- | --- |",
        *(f"| {what} | {rate} |" for what, rate in PUBLISHED),
    ]
    return "\n".join(lines) + "\n"


def _line(
    name: str,
    title: str,
    on_cuda: Target,
    on_cpu: Target,
    cuda: Mapping[str, Any] | None,
    cpu: Mapping[str, Any] | None,
) -> str:
    cells = [title, on_cuda.text, _cell(name, on_cuda, cuda), on_cpu.text, _cell(name, on_cpu, cpu)]
    return "| " + " | ".join(cells) + " |"


def _device(kind: str, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"- {kind}: {NOT_MEASURED}"
    machine, size = result["machine"], result["size"]
    return (
        f"- {kind}: {machine['device']}; torch {machine['torch']}, torchvision {machine['torchvision']}, Python {machine['python']}; "
        f"{result['precision']}, batch {size['batch_size']}, photos of {size['side']} px cropped to {size['crop']} px"
        + ("; a smoke run, whose numbers mean nothing" if result["quick"] else "")
    )


def _cell(name: str, target: Target, result: Mapping[str, Any] | None) -> str:
    if target is NONE:
        return "-"
    row = (result or {"rows": {}})["rows"].get(name)
    if row is None:
        return NOT_MEASURED
    if "not_measured" in row:
        return f"{NOT_MEASURED}: {row['not_measured']}"
    value, text = _value(name, row)
    if target.limit is None or value is None:
        return text
    met = value <= target.limit if target.at_most else value >= target.limit
    return text if met else f"**{text}**"


def _value(name: str, row: Mapping[str, Any]) -> tuple[float | None, str]:
    """What is held against the target, and the whole cell."""
    if name == "startup":
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in row["seconds"].items() if part != "total")
        what = f"{row['epochs']} epochs of {row['train_images']} images"
        return None, f"{row['seconds']['total']:.1f} s ({parts}; {what})"
    if name.startswith("growth"):
        rates = ", ".join(f"{label}: {rate['median']:,.0f}" for label, rate in row["rates"].items())
        if row["spread"] is None:
            return None, f"{rates} images/s"
        return row["spread"], f"{row['spread']:.1%} ({rates} images/s)"
    if name == "roofline":
        return row["ratio"], f"{row['ratio']:.2f} ({_rate(row, 'ours')} images/s)"
    if name == "data_path":
        return row["ratio"], f"{row['ratio']:.3f}"
    times = "" if name == "resident" else "×"
    return row[
        "ratio"
    ], f"{row['ratio']:.2f}{times} ({' / '.join(_rate(row, way) for way in _pair(name, row['rates']))})"


def _pair(name: str, rates: Mapping[str, Any]) -> Sequence[str]:
    return ("ours", name.removeprefix("evaluation_")) if name.startswith("evaluation") else tuple(rates)


def _rate(row: Mapping[str, Any], way: str) -> str:
    rate = row["rates"][way]["median"]
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
