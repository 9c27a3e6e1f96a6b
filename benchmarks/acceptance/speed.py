"""The rows of python -m benchmarks as claims, each held against its target; where a step's time goes; accuracy over seeds."""

import tempfile
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks import accuracy, ours
from benchmarks.acceptance.claims import FAILS, NOT_RUN, Claim, hold, report
from benchmarks.acceptance.setup import Setup
from benchmarks.evaluation import measure_evaluation
from benchmarks.growth import measure_growth
from benchmarks.record import Rows, write_row
from benchmarks.startup import measure_startup
from benchmarks.table import ROWS, value_and_text
from benchmarks.tasks import drawn_task
from benchmarks.timing import synchronize
from benchmarks.training import measure_training
from benchmarks.workload import make_workload

SEEDS = 5
STEPS = 4  # that are profiled
KERNELS = 15  # that are reported, the longest first


def training_claims(setup: Setup) -> Iterator[Claim]:
    with tempfile.TemporaryDirectory() as folder:
        make_workload(setup.size, Path(folder))
        yield from judge(setup, measure_training(setup.size, Path(folder), setup.torch_device, setup.precision))


def profile_claims(setup: Setup) -> Iterator[Claim]:
    """Where a training step's time goes, kernel by kernel (on a CPU, operator by operator)."""
    device, on_cuda = setup.torch_device, setup.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        split = make_workload(setup.size, Path(folder)).train
        mine = ours.prepare(split, setup.size, device, setup.precision)
        draws = ours.plan(split, STEPS * setup.size.batch_size, device)
        ours.run(mine.step, draws, setup.size.batch_size)
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as found:
            ours.run(mine.step, draws, setup.size.batch_size)
            synchronize(device)
    time_of = attrgetter("self_device_time_total" if on_cuda else "self_cpu_time_total")
    kernels = sorted(found.key_averages(), key=time_of, reverse=True)
    total = sum(map(time_of, kernels)) or 1.0  # microseconds
    yield report("a training step, by the profiler", f"{total / STEPS / 1000:.2f} ms")
    for kernel in kernels[:KERNELS]:
        yield report(kernel.key[:100], f"{time_of(kernel) / total:.1%}, {kernel.count / STEPS:g} calls a step")


def evaluation_claims(setup: Setup) -> Iterator[Claim]:
    with tempfile.TemporaryDirectory() as folder:
        work = make_workload(setup.size, Path(folder))
        rows = measure_evaluation(work, setup.size, Path(folder), setup.torch_device, setup.precision)
        yield from judge(setup, rows)


def growth_claims(setup: Setup) -> Iterator[Claim]:
    with tempfile.TemporaryDirectory() as folder:
        work = make_workload(setup.size, Path(folder))
        yield from judge(setup, measure_growth(work, setup.size, Path(folder), setup.torch_device, setup.precision))


def startup_claims(setup: Setup) -> Iterator[Claim]:
    with tempfile.TemporaryDirectory() as folder:
        make_workload(setup.size, Path(folder))
        yield from judge(setup, measure_startup(setup.size, Path(folder), setup.torch_device))


def judge(setup: Setup, rows: Rows) -> Iterator[Claim]:
    """Each row, written as it is measured, against the target of this device; a dry run is not held against any."""
    targets = {name: (title, on_cuda if setup.device == "cuda" else on_cpu) for name, title, on_cuda, on_cpu in ROWS}
    for name, row in rows:
        write_row(setup.results, setup.about, "rows", name, row)
        title, target = targets[name]
        if "failed" in row:
            yield Claim(f"{name}: {title}", row["failed"], FAILS, target.text)
        elif "not_measured" in row:
            yield Claim(f"{name}: {title}", "", f"{NOT_RUN}: {row['not_measured']}", target.text)
        else:
            value, text = value_and_text(name, row)
            if setup.small or target.limit is None or value is None:
                yield report(f"{name}: {title}", text)
            else:
                yield hold(f"{name}: {title}", target.met(value), text, target.text)


def accuracy_claims(setup: Setup) -> Iterator[Claim]:
    """The book's loop in float32 against ours in this device's precision, seed by seed."""
    task = drawn_task(setup.torch_device, setup.small)
    result = accuracy.compare(task, 2 if setup.small else SEEDS, setup.torch_device)
    low, high = result["difference"]["low"], result["difference"]["high"]
    yield report("accuracy of both loops", accuracy.render([result]).splitlines()[-1])
    measured = f"difference {result['difference']['mean']:.3f} [{low:.3f}, {high:.3f}]"
    yield (
        report("ours less the plain loop's", measured)
        if setup.small
        else hold("our loop is no less accurate than the plain one", high >= 0, measured, "the interval reaches 0")
    )
