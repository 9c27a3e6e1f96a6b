"""Promote an experiment's model where the rule says so: `python -m flows.promote NIGHTLY`."""

import argparse
from pathlib import Path

from flows import dvc_stages
from flows.promote.decide import decide
from flows.promote.registry import undo, versions
from flows.settings import SCHEDULE, load_schedule


def main() -> int:
    arguments = _parser().parse_args()
    project = Path.cwd()
    if not (project / "dvc.yaml").exists():
        raise ValueError(f"{project}: no dvc.yaml; run this in the project's folder")
    if arguments.undo and arguments.dry_run:
        raise ValueError("--undo has no dry run; --list shows the version that it takes back, the last")
    if arguments.list or arguments.undo:
        if arguments.undo:
            taken, left = undo(project, arguments.git_remote)
            print(f"taken back: {taken}; promoted now: {left or 'nothing'}")
        for tag, commit in versions(project).items():
            print(tag, commit[:12])
        return 0
    if not arguments.experiment:
        raise ValueError("name an experiment (`dvc exp list` shows them), or give --list or --undo")
    rule = load_schedule(arguments.schedule).promotion
    decision = decide(project, arguments.experiment, rule, dry_run=arguments.dry_run, git_remote=arguments.git_remote)
    print(decision.text)
    return 0 if decision.good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description="Promote an experiment's model.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("experiment", nargs="?", help="name of a DVC experiment, or a commit")
    what.add_argument("--undo", action="store_true", help="take the newest promoted version back")
    what.add_argument("--list", action="store_true", help="list the promoted versions, the current one last")
    parser.add_argument("--schedule", type=Path, default=SCHEDULE, help="file with the rule (default: the project's)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be decided, and change nothing")
    parser.add_argument("--git-remote", metavar="NAME", help="share versions with it: push, or take back there too")
    return parser


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except (ValueError, dvc_stages.Busy) as error:
        raise SystemExit(f"error: {error}") from None
