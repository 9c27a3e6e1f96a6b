"""Say what is wrong on this machine, and what to do about it: `python -m flows.doctor`.

Looks and changes nothing; exits 1 where something must be done.
"""

import os
import shutil
import sys
from pathlib import Path

from flows.doctor.finding import Finding
from flows.doctor.machine import check_disk, check_pins, check_python, check_runtimes
from flows.doctor.services import check_dvc, check_server
from flows.doctor.sources import check_sources
from flows.settings import load_schedule


def examine(root: Path) -> list[Finding]:
    return [
        check_python(sys.version_info[:2]),
        *check_pins(root / "constraints.txt"),
        *check_runtimes(),
        check_disk(shutil.disk_usage(root).free),
        *check_dvc(root),
        check_server(os.environ.get("PREFECT_API_URL") or load_schedule().api_url),
        *check_sources(root),
    ]


def main() -> int:
    findings = examine(Path.cwd())
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.level:4}  {finding.subject:{width}}  {finding.message}")
    return int(any(finding.level == "fail" for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
