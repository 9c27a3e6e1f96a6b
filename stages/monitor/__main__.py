"""Compare recent pictures with the training images: python -m stages.monitor; nothing is run where monitor.source is null.

artifacts/monitor/report.json     whether they differ, how sure that is, how familiar they are, what the model answers
artifacts/monitor/fragment.html   the same with the pictures that differ most, for the report
"""

from pathlib import Path
from typing import Any

from stages.shared import artifacts
from stages.shared.cli import run
from stages.shared.files import write_json, write_text
from stages.shared.params import load_params

NOT_RUN = "not run: monitor.source is null"


def main() -> None:
    params = load_params()
    source = params.monitor.source
    if source is None:
        publish({"verdict": NOT_RUN}, f"<!-- {NOT_RUN} -->\n")  # DVC would warn of an empty file
        return
    # Here, not at the top: where there is nothing to look at, the stage need not load torch.
    from stages.monitor.compare import compare, render

    weights = artifacts.source_weights(params.model.weights)
    report, shown = compare(Path(source), params.model.architecture, weights, params.runtime.device)
    publish(report, render(report, shown))


def publish(report: dict[str, Any], fragment: str) -> None:
    write_json(artifacts.MONITOR / "report.json", report)
    write_text(artifacts.MONITOR / "fragment.html", fragment)
    print(f"monitor: {report['verdict']}", flush=True)


if __name__ == "__main__":
    run(main)
