"""Run the steps of acceptance, each in a process of its own, and print the table of claims; see the package's docstring."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.acceptance.claims import failed, render
from benchmarks.acceptance.setup import ROOT, Setup
from benchmarks.acceptance.steps import STEPS
from benchmarks.record import RESULTS, write_row
from benchmarks.table import write_table
from stages.shared.files import read_json, write_text
from stages.shared.reproducibility import choose_device

GRACE = 10  # seconds between asking a step to end and ending it


def main() -> None:
    arguments = parse_arguments()
    forked = arguments.small and any(STEPS[name].runs_stages for name in arguments.only)
    with stage_python(forked) as python:
        setup = Setup(
            device=choose_device(arguments.device).type,
            small=arguments.small,
            out=str(arguments.out.resolve()),
            work=str(arguments.work.resolve()),
            real=str(arguments.real.resolve()) if arguments.real else None,
            weights=str(arguments.weights.resolve()) if arguments.weights else None,
            python=python,
        )
        start_from_earlier_results(setup)
        for name in arguments.only:
            run_step(name, setup)
    results = read_json(setup.results)
    table = render(results)
    write_text(setup.results.with_suffix(".md"), table)
    write_table(setup.results.parent)
    print(table)
    failures = failed(results, arguments.only)
    if failures:
        print("\n".join(["failed:", *failures]))
        raise SystemExit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acceptance", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for cuda-<device>.json and its table")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="a dry run on tiny inputs; its numbers mean nothing")
    parser.add_argument("--only", nargs="+", default=list(STEPS), choices=list(STEPS), metavar="STEP")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "acceptance", help="scratch folder")
    parser.add_argument("--real", type=Path, help="a real data set, a zip or a folder, for the step `real`")
    parser.add_argument("--weights", type=Path, help="source weights for it (default: the drawn source model's)")
    arguments = parser.parse_args()
    if arguments.small and arguments.out.resolve() == RESULTS:
        parser.error("--small measures nothing worth keeping: give it an --out of its own")
    return arguments


@contextmanager
def stage_python(forked: bool) -> Iterator[str]:
    """The python that runs stages: this one, or forks of one that has imported their libraries, most of a dry run's time."""
    if forked:
        from flows import warm

        with warm.python() as folder:
            yield str(folder / "python")
    else:
        yield sys.executable


def start_from_earlier_results(setup: Setup) -> None:
    """Merge into what the results folder knows of this device, unless --out has a file of its own already."""
    earlier = RESULTS / setup.results.name
    if not setup.small and earlier.exists() and not setup.results.exists():
        setup.results.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(earlier, setup.results)


def run_step(name: str, setup: Setup) -> None:
    """Run one step within its time limit; its end is written whatever it was."""
    limit = STEPS[name].seconds * (3 if setup.small else 1)  # a dry run may share a small machine with other tests
    print(f"\n== {name}, at most {limit} s", flush=True)
    write_row(
        setup.results, setup.about, "steps", name, {"claims": [], "ended": "running", "seconds": 0, "limit_s": limit}
    )
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.acceptance.step", name, setup.as_json()]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(limit)
        ended = "finished" if code == 0 else f"failed with exit code {code}; its message is in the output"
    except subprocess.TimeoutExpired:
        ended = f"stopped after {limit} s"
    finally:
        end_group(process)
    step = read_json(setup.results)["steps"][name]
    write_row(
        setup.results,
        setup.about,
        "steps",
        name,
        {**step, "ended": ended, "seconds": round(time.monotonic() - start, 1)},
    )
    print(f"== {name}: {ended}", flush=True)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a step: its process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a step ends with this process
    main()
