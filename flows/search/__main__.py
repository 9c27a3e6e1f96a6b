"""Search a recipe's keys with several workers: `python -m flows.search NAME|FILE`.

The workers are processes that share a journal file. One that is killed is started again, and takes its trial up where it
was; the command itself, started again, goes on where it stopped.
"""

import argparse
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows import dvc_stages, foreground, overrides, supervise
from flows.search import results, space, study, worker
from flows.sweep import capacity, experiments

GRACE = 20.0  # seconds for a worker to stop its experiment, which has 10
PATIENCE = 3  # workers in a row that end with an error before the search does


def main() -> None:
    arguments = parser().parse_args()
    settings = overrides.from_arguments(arguments)
    chosen = space.load_space(arguments.space)
    chosen = chosen.model_copy(update={"settings": {**chosen.settings, **settings}})
    project = Path.cwd()
    commit = experiments.committed(project)
    validate(project, commit, chosen)
    workers = arguments.workers or max(1, capacity.num_cores() // arguments.threads)
    folder = project / ".cache/search" / f"{chosen.name}-{chosen.digest}-{commit[:12]}"
    given = {"space": arguments.space, "settings": settings, "folder": str(folder), "commit": commit}
    given |= {"trials": arguments.trials, "threads": arguments.threads}
    given["first"] = chosen.own_values(experiments.params_at(project, commit))
    foreground.interrupt_on_signals()
    with dvc_stages.claimed(project / ".cache" / f"search-{chosen.name}.lock"):
        run_workers(given, workers, arguments.seed)
        done = study.open_study(folder, chosen, arguments.seed)
        print(results.write(project, chosen, done, commit, arguments.threads))


def validate(project: Path, commit: str, chosen: space.Space) -> None:
    """Raises ValueError for a key or a value that a stage would refuse, at whatever rung."""
    rungs = range(len(chosen.rungs))
    planned = [worker.experiment(chosen, n, corner, r) for n, corner in enumerate(chosen.corners()) for r in rungs]
    experiments.validate(project, commit, [replace(e, point={"experiment": e.name}) for e in planned])


def run_workers(given: dict[str, Any], count: int, seed: int) -> None:
    """Keep `count` workers running until no trial is left for any. However this function ends, no worker is left running.

    Raises ValueError where workers end with an error again and again.
    """
    workers: dict[int, subprocess.Popen[bytes]] = {}
    failures = 0
    try:
        waiting = list(range(count))
        while waiting or workers:
            for number in waiting:
                arguments = {**given, "seed": seed + number + 1000 * failures}
                workers[number] = foreground.start("flows.search.worker", arguments, grace=GRACE)
            ended = {number: code for number, process in workers.items() if (code := process.poll()) is not None}
            waiting = [number for number, code in ended.items() if code != 0]
            for number in ended:
                del workers[number]
            failures += sum(0 < code < 128 for code in ended.values())
            if failures >= PATIENCE:
                raise ValueError(f"{failures} workers ended with an error; the last words are above")
            time.sleep(0.2)
    finally:
        for process in workers.values():
            supervise.stop(process, grace=GRACE)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.search", description="Search a recipe's keys by validation.")
    ready = ", ".join(sorted(file.stem for file in space.FOLDER.glob("*.yaml")))
    parser.add_argument("space", help=f"{ready}, or a YAML file")
    parser.add_argument("--trials", type=capacity.count, default=40, help="settings to try, in all (default: 40)")
    parser.add_argument("--workers", type=capacity.count, help="trials at a time (default: one a core)")
    parser.add_argument("--threads", type=capacity.count, default=1, help="CPU threads of each (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler (default: 0)")
    overrides.add_arguments(parser)
    return parser


if __name__ == "__main__":
    try:
        main()
    except (ValueError, dvc_stages.Busy, experiments.ExperimentFailed) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(supervise.STOPPED) from None
