"""The acceptance script runs every step, stops what hangs, keeps what was measured, and fails when a claim does."""

import json
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks.acceptance import __main__ as acceptance
from benchmarks.acceptance import claims, packages, pipeline
from benchmarks.acceptance.graph import stages_in_order, unfold
from benchmarks.acceptance.setup import Setup
from benchmarks.acceptance.steps import STEPS, Step
from benchmarks.record import write_row

ROOT = Path(__file__).parents[1]


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *steps: str) -> dict:
    words = ["--device", "cpu", "--small", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["acceptance", *words, "--only", *steps])
    acceptance.main()
    return json.loads((tmp_path / "out" / "cpu.json").read_text())["steps"]


def verdicts(step: dict) -> set[str]:
    return {claim["verdict"].split(":")[0] for claim in step["claims"]}


def test_the_first_step_runs_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = run(monkeypatch, tmp_path, "machine")
    assert [step["ended"] for step in steps.values()] == ["finished"]
    assert (tmp_path / "out" / "table.md").exists()
    for claim in steps["machine"]["claims"]:
        assert claim["claim"] in (tmp_path / "out" / "cpu.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(2700)  # six minutes on two cores that have nothing else to do
def test_the_dry_run_ends_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = run(monkeypatch, tmp_path, *STEPS)
    assert {name: step["ended"] for name, step in steps.items()} == dict.fromkeys(STEPS, "finished")
    assert all("fails" not in verdicts(step) for step in steps.values())
    assert verdicts(steps["capture"]) == {"holds"}
    assert verdicts(steps["real"]) == {"not run"}


def setup(tmp_path: Path) -> Setup:
    return Setup(device="cpu", small=True, out=str(tmp_path), work=str(tmp_path), real=None, weights=None)


def test_a_step_that_takes_too_long_is_stopped_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(STEPS, "machine", Step(STEPS["machine"].claims, 0))
    monkeypatch.setitem(STEPS, "capture", Step(STEPS["capture"].claims, 0))
    for name in ("machine", "capture"):
        acceptance.run_step(name, setup(tmp_path))
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert claims.failed(results, ["machine", "capture"]) == [
        "machine: stopped after 0 s",
        "capture: stopped after 0 s",
    ]


def test_a_claim_that_fails_ends_in_exit_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [claims.at_most("a", 0.5, 1).as_dict(), claims.at_most("b", 2, 1).as_dict()]
    about = setup(tmp_path / "out").about

    def pretend(name: str, made: Setup) -> None:
        step = {"claims": found, "ended": "finished", "seconds": 1, "limit_s": 2}
        write_row(made.results, about, "steps", name, step)

    monkeypatch.setattr(acceptance, "run_step", pretend)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path, "machine")
    assert ended.value.code == 1
    results = json.loads((tmp_path / "out" / "cpu.json").read_text())
    assert claims.failed(results, ["machine"]) == ["machine: b: 2"]


def test_a_dry_run_cannot_replace_the_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["acceptance", "--small", "--out", str(acceptance.RESULTS)])
    with pytest.raises(SystemExit):
        acceptance.parse_arguments()
    assert "give it an --out of its own" in capsys.readouterr().err


def test_what_a_machine_lacks_is_named_with_the_file_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.missing_packages() == []
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "cleanlab" else "there")
    assert packages.missing_packages() == ["cleanlab is not installed; stages/inspect/labels.py needs it"]


def test_the_steps_import_neither_an_orchestrator_nor_another_runtime() -> None:
    imported = {module.split(".")[0] for file in packages.imported_files() for module in packages.imports(file)}
    assert {"torch", "pydantic", "ruamel", "pytest"} <= imported
    assert not {"prefect", "dvc", "openvino", "timm", "fastapi"} & imported


def test_every_stage_comes_behind_what_it_reads() -> None:
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    stages = stages_in_order(ROOT / "dvc.yaml", params)
    made: set[str] = set()
    for stage in stages:
        later = {out for other in stages for out in other.outs} - made - set(stage.outs)
        assert not [dep for dep in stage.deps if dep in later], stage.name
        made |= set(stage.outs)
    names = [stage.name for stage in stages]
    assert {f"train@{recipe}" for recipe in params["train"]} <= set(names)
    assert all(stage.words[0].startswith("stages.") for stage in stages)


def test_a_matrix_is_unfolded_over_params_and_lists() -> None:
    graph = {
        "vars": [{"python": "PATH=.venv/bin:$PATH python"}],
        "stages": {
            "use": {
                "cmd": "${python} -m stages.use",
                "deps": ["a/x/file", "b.py"],
                "metrics": [{"m.json": {"cache": False}}],
            },
            "make": {
                "matrix": {"what": "${train}", "size": [1, 2]},
                "cmd": "${python} -m stages.make ${item.what} ${item.size}",
                "outs": ["a/${item.what}"],
            },
        },
    }
    stages = list(unfold(graph, {"train": {"x": {}, "y": {}}}))
    assert [stage.name for stage in stages] == ["use", "make@x@1", "make@x@2", "make@y@1", "make@y@2"]
    assert stages[1].words == ("stages.make", "x", "1")
    assert stages[1].outs == ("a/x",)
    assert stages[0].outs == ("m.json",)


def test_a_parity_row_is_a_claim() -> None:
    row = {"runtime": "ONNX Runtime CUDA", "precision": "fp32", "subject": "core.onnx", "check": "agrees with float64"}
    numbers = {"max_error": 1.5e-6, "limit": 2e-5, "reason": ""}
    claim = pipeline.parity_claim({**row, **numbers, "verdict": "passed"})
    assert (claim.verdict, claim.measured, claim.limit) == ("holds", "1.5e-06", "≤ 2e-05")
    absent = pipeline.parity_claim(
        {**row, "max_error": None, "limit": None, "reason": "", "verdict": "not run: no CUDA device"}
    )
    assert absent.verdict == "not run: no CUDA device"


def test_answers_that_are_missing_differ_without_end() -> None:
    answers = [{"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}]
    assert pipeline.largest_difference(answers, [answers[0], {"a": 0.375, "b": 0.625}]) == 0.125
    assert pipeline.largest_difference(answers, answers[:1]) == float("inf")
    assert pipeline.largest_difference([], []) == float("inf")
