"""The check_parity stage: the exported files against the checkpoint, on every runtime there is.

Writes artifacts/parity.json and parity.md, then fails when any row does. `--require-gpu` turns rows that found no CUDA
device into failures; `--compile` times torch.compile on the CPU too; `--reference-evaluator` runs onnx's own evaluator.
"""

from collections import Counter
from dataclasses import replace

import torch

from stages.check_parity.familiarity import familiarity_rows
from stages.check_parity.files import check_files
from stages.check_parity.images import image_rows
from stages.check_parity.judge import FAILED, NO_DEVICE, PASSED, Row, write_table
from stages.check_parity.latency import latency_rows
from stages.check_parity.logits import cpu_rows, cuda_rows, torch_rows
from stages.check_parity.other_runtimes import other_runtime_rows
from stages.check_parity.subjects import load_subjects
from stages.shared import artifacts, cli
from stages.shared.params import load_params
from stages.shared.reproducibility import describe_machine
from stages.shared.source_images import source_images

OPTIONS = ("--require-gpu", "--compile", "--reference-evaluator")


def main(*options: str) -> None:
    check_options(options)
    params = load_params()
    limits = params.parity.model_dump()
    with source_images(artifacts.SOURCE_DATASET, artifacts.CACHE / "check_parity") as images_dir:
        subjects = load_subjects(artifacts.selected_recipe(params.export.recipe), images_dir)
        rows, models = check_files(artifacts.ROOT, subjects)
        rows += torch_rows(subjects, limits)
        rows += cpu_rows(subjects, models, limits)
        rows += cuda_rows(subjects, models, limits)
        rows += image_rows(artifacts.ROOT, subjects, models, limits["probability"])
        rows += familiarity_rows(artifacts.ROOT, subjects, models, limits["probability"])
        rows += other_runtime_rows(
            artifacts.ROOT,
            subjects,
            models,
            limits["probability"],
            reference_evaluator="--reference-evaluator" in options,
        )
        rows += latency_rows(subjects, models, limits, compiled_on_cpu="--compile" in options)
    if "--require-gpu" in options:
        rows = [require_gpu(row) for row in rows]
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    write_table(artifacts.PARITY, rows, {"model_digest": subjects.sha256["model.onnx"], "machine": machine})
    report(rows)


def check_options(options: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; known are {', '.join(OPTIONS)}")


def require_gpu(row: Row) -> Row:
    if row.verdict != NO_DEVICE:
        return row
    why = f": {row.reason}" if row.reason else ""
    return replace(row, verdict=FAILED, reason=f"no CUDA device, and --require-gpu was given{why}")


def report(rows: list[Row]) -> None:
    """Print each row that ran, and in one line why the others did not; raise ValueError naming those that failed."""
    not_run = Counter(row.verdict.partition("not run: ")[2] for row in rows if row.verdict not in (PASSED, FAILED))
    for row in rows:
        if row.verdict in (PASSED, FAILED):
            print(f"{row.verdict}  {row.claim.name}", flush=True)
    if not_run:
        reasons = "; ".join(f"{reason} ({number})" for reason, number in not_run.most_common())
        print(f"not run: {not_run.total()} of {len(rows)} rows: {reasons}", flush=True)
    failed = [f"  {row.claim.name}: {row.reason}" for row in rows if row.verdict == FAILED]
    if failed:
        listing = "\n".join(failed)
        raise ValueError(
            f"parity: {len(failed)} of {len(rows)} rows failed, see {artifacts.PARITY.with_suffix('.md')}\n{listing}"
        )


if __name__ == "__main__":
    cli.run(main)
