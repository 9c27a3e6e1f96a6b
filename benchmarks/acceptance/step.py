"""One step in this process: python -m benchmarks.acceptance.step NAME SETUP (JSON). Its claims are written as they are found."""

import json
import sys
from typing import Any

from benchmarks.acceptance.setup import Setup
from benchmarks.acceptance.steps import STEPS
from benchmarks.record import write_row
from stages.shared.files import read_json


def main(name: str, setup_json: str) -> None:
    setup = Setup(**json.loads(setup_json))
    found: list[dict[str, str]] = []
    for claim in STEPS[name].claims(setup):
        found.append(claim.as_dict())
        print(f"{claim.verdict:<10.60} {claim.claim}: {claim.measured} {claim.limit}".rstrip(), flush=True)
        write_row(setup.results, setup.about, "steps", name, {**read_step(setup, name), "claims": found})


def read_step(setup: Setup, name: str) -> dict[str, Any]:
    step: dict[str, Any] = read_json(setup.results)["steps"][name]
    return step


if __name__ == "__main__":
    main(*sys.argv[1:])
