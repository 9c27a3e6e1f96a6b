"""Run the pipeline here and now: `python -m flows.pipeline [-S KEY=VALUE] [stages...]`."""

import argparse
from pathlib import Path
from typing import Any

from flows import dvc_stages, overrides
from flows.checkout import local_path
from flows.doctor.sources import check_source, is_torchvisions_name
from flows.foreground import run_flow
from flows.mend import refuse_conflict
from flows.project import read_yaml

GRACE = 25.0  # seconds for the flow to stop its stage (10) and to tell the server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Run the pipeline here and now.")
    parser.add_argument("targets", nargs="*", help="stages of dvc.yaml, run with all they need (default: all stages)")
    parser.add_argument("--force", action="store_true", help="run the stages even where nothing changed")
    parser.add_argument("--experiment", metavar="PREFIX", help="run the last commit in a checkout of its own and save")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="stop after this time")
    overrides.add_arguments(parser)
    arguments = parser.parse_args()
    settings = overrides.from_arguments(arguments)
    if not arguments.experiment:
        check(Path.cwd(), arguments.targets, settings)
    chosen: dict[str, Any] = {key: getattr(arguments, key) for key in ("targets", "force", "experiment", "timeout")}
    raise SystemExit(run_flow("flows.pipeline.flow", {**chosen, "settings": settings}, grace=GRACE))


def check(root: Path, targets: list[str], settings: overrides.Settings) -> None:
    """Raises ValueError for what would fail once the server, or half the stages, have run."""
    refuse_conflict(root / "dvc.lock")
    params = overrides.applied(read_yaml(root / "params.yaml"), settings)
    overrides.validate(root, [("params.yaml", params)])
    dataset, weights = local_path(params, "dataset", "source"), local_path(params, "model", "weights")
    check_path("dataset.source", dataset, root)
    if not is_torchvisions_name(weights, root):
        check_path("model.weights", weights, root)
    dvc_stages.plan(root, targets)


def check_path(key: str, source: str, root: Path) -> None:
    """Raises ValueError where a source that is no address does not exist."""
    if "://" not in source and (found := check_source(key, source, root, None)).level == "fail":
        raise ValueError(f"{found.subject}: {found.message}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
