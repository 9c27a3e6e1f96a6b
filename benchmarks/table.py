"""The results as Markdown: a row a line, what was asked for and what was measured, a column for each CUDA device."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.shared.files import read_json, write_text

NOT_MEASURED = "not measured"
NO_DEVICE = "not run: no CUDA device"


class Target(NamedTuple):
    text: str
    limit: float | None = None  # None: only reported
    at_most: bool = False

    def met(self, value: float) -> bool:
        assert self.limit is not None
        return value <= self.limit if self.at_most else value >= self.limit


REPORT = Target("report")
NONE = Target("-")
ROWS: list[tuple[str, str, Target, Target]] = [  # name, title, target on CUDA, target on a CPU
    ("d2l_timer", "d2l's loop as published (float32, NCHW, PIL, DataLoader): its own timer", Target("≥ 3×", 3), Target("≥ 2.4×", 2.4)),
    ("d2l_end_to_end", "the same, end to end", Target("≥ 30×", 30), Target("≥ 2.4×", 2.4)),
    ("torchvision_timer", "torchvision references' loop (workers, AMP, channels last): batch to loss", Target("≥ 1.5×", 1.5), NONE),
    ("torchvision_end_to_end", "the same, end to end", Target("≥ 1.5×", 1.5), NONE),
    ("timm_timer", "timm's loaders, optimizer and loop (uint8 collate, prefetch, AMP, channels last, compile): batch to loss", Target("≥ 1×", 1), NONE),
    ("timm_end_to_end", "the same, end to end", Target("≥ 1×", 1), NONE),
    ("resident", "our step over the same step on one resident random batch", Target("≥ 0.97", 0.97), Target("≥ 0.95", 0.95)),
    ("data_path", "data path alone / step", Target("≤ 0.03", 0.03, at_most=True), REPORT),
    ("roofline", "our step over the device's per-kernel floor, from its measured peaks; on a CPU, over the rate of 3×3 convolutions alone", Target("≥ 0.5", 0.5), Target("≥ 0.65", 0.65)),
    ("compiled", "our step compiled over the default", REPORT, NONE),
    ("roofline_compiled", "our step compiled over the device's per-kernel floor", Target("≥ 0.6", 0.6), NONE),
    ("evaluation_eager", "evaluation (`evaluate.execution: fast`) against float32 eager", REPORT, Target("≥ 3.5×", 3.5)),
    ("evaluation_onnxruntime", "the same, against ONNX Runtime", REPORT, Target("≥ 1.6×", 1.6)),
    ("evaluation_torchvision", "the same, against torchvision references' evaluation of ready batches", Target("≥ 3×", 3), REPORT),
    ("evaluation_torchvision_end_to_end", "the same, its batches loaded from JPEG files", REPORT, REPORT),
    ("evaluation_timm", "the same, against timm's loaders and validation of ready batches", REPORT, REPORT),
    ("evaluation_timm_end_to_end", "the same, its batches loaded from JPEG files", REPORT, REPORT),
    ("startup", "start of process to final metrics", REPORT, REPORT),
    ("growth_images", "cost of an image as images grow 1×, 4×, 16×", Target("within 5 %", 0.05, at_most=True), Target("within 10 %", 0.10, at_most=True)),
    ("growth_batch", "cost of an image in batches of half, once and twice the size", REPORT, REPORT),
    ("growth_processes", "cost of an image on 1, 2, 4 processes", Target("within 5 %", 0.05, at_most=True), Target("within 10 %", 0.10, at_most=True)),
]  # fmt: skip

PUBLISHED = [
    ("d2l, ResNet-18 fine-tuned / from scratch, 224 px, one CUDA GPU, its own timer", "1876.0 / 2093.3"),
    ("ffcv-imagenet, ResNet-18, 160-192 px, one A100, average", "9,800"),
    ("timm, ResNet-18, 224 px, RTX 3090, AMP, channels last, training", "3,482"),
    ("timm, ResNet-18, 224 px, RTX 4090, compiled, inference", "25,900"),
]


def write_table(folder: Path) -> str:
    """Write table.md from the results beside it; returns its text."""
    cpu = folder / "cpu.json"
    table = render(
        [read_json(path) for path in sorted(folder.glob("cuda-*.json"))], read_json(cpu) if cpu.exists() else None
    )
    write_text(folder / "table.md", table)
    return table


def render(cuda: Sequence[Mapping[str, Any]], cpu: Mapping[str, Any] | None) -> str:
    """Markdown of the results of every CUDA device and of the CPU, each as __main__ writes it."""
    devices: list[Mapping[str, Any] | None] = [*cuda] or [None]
    titles = ["", "target, CUDA", *(_device_name(result) for result in devices), "target, CPU", "CPU"]
    lines = [
        "| " + " | ".join(titles) + " |",
        "|" + " --- |" * len(titles),
        *("| " + " | ".join(_cells(*row, devices, cpu)) + " |" for row in ROWS),
        "",
        *(_describe("CUDA", result) for result in devices),
        _describe("CPU", cpu),
        "",
        "Ratios are medians over interleaved rounds, in brackets ours and theirs in images/s. **Bold** misses its target.",
        "",
        "| published by the peers, on other machines | images/s |",
        "| --- | --- |",
        *(f"| {what} | {rate} |" for what, rate in PUBLISHED),
    ]
    return "\n".join(lines) + "\n"


def _cells(
    name: str,
    title: str,
    on_cuda: Target,
    on_cpu: Target,
    devices: Sequence[Mapping[str, Any] | None],
    cpu: Mapping[str, Any] | None,
) -> list[str]:
    measured = [_cell(name, on_cuda, result, NO_DEVICE) for result in devices]
    return [title, on_cuda.text, *measured, on_cpu.text, _cell(name, on_cpu, cpu, NOT_MEASURED)]


def _device_name(result: Mapping[str, Any] | None) -> str:
    return "CUDA" if result is None else result["machine"]["device"].removeprefix("cuda (").removesuffix(")")


def _describe(kind: str, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"- {kind}: {NO_DEVICE if kind == 'CUDA' else NOT_MEASURED}"
    machine, size = result["machine"], result["size"]
    return (
        f"- {kind}: {machine['device']}; torch {machine['torch']}, torchvision {machine['torchvision']}, Python {machine['python']}; "
        f"{result['precision']}, batch {size['batch_size']}, photos of {size['side']} px cropped to {size['crop']} px"
        + ("; a smoke run, whose numbers mean nothing" if result["quick"] else "")
    )


def _cell(name: str, target: Target, result: Mapping[str, Any] | None, absent: str) -> str:
    if target is NONE:
        return "-"
    row = (result or {}).get("rows", {}).get(name)
    if row is None:
        return absent if result is None else NOT_MEASURED
    for word in ("not_measured", "failed"):
        if word in row:
            return f"{word.replace('_', ' ')}: {row[word]}".replace("|", "\\|").replace("\n", " ")
    value, text = value_and_text(name, row)
    if target.limit is None or value is None:
        return text
    return text if target.met(value) else f"**{text}**"


def value_and_text(name: str, row: Mapping[str, Any]) -> tuple[float | None, str]:
    """The number that is held against the target, and the whole cell."""
    if name == "startup":
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in row["seconds"].items() if part != "total")
        what = f"{row['epochs']} epochs of {row['train_images']} images"
        return None, f"{row['seconds']['total']:.1f} s ({parts}; {what})"
    if name.startswith("growth"):
        rates = ", ".join(f"{label}: {rate['median']:,.0f}" for label, rate in row["rates"].items())
        if row["spread"] is None:
            return None, f"{rates} images/s"
        return row["spread"], f"{row['spread']:.1%} ({rates} images/s)"
    if name.startswith("roofline"):
        floors = "".join(f"; {device} allows {rate:,.0f}" for device, rate in row.get("allowed", {}).items())
        return row["ratio"], f"{row['ratio']:.2f} ({_rate(row, 'ours')} images/s{floors})"
    if name == "data_path":
        return row["ratio"], f"{row['ratio']:.3f}"
    ours, theirs, *_ = row["rates"]
    times = "" if name == "resident" else "×"
    pays = _when_it_pays(row) if name == "compiled" else ""
    return row["ratio"], f"{row['ratio']:.2f}{times} ({_rate(row, ours)} / {_rate(row, theirs)}{pays})"


def _when_it_pays(row: Mapping[str, Any]) -> str:
    after = "never" if row["pays_after_steps"] is None else f"after {row['pays_after_steps']:,.0f} steps"
    return f"; compiled in {row['compile_seconds']:.0f} s, pays {after}"


def _rate(row: Mapping[str, Any], way: str) -> str:
    rate = row["rates"][way]["median"]
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
