"""The demo's copy of the checkout: what git knows of, edited params, a repository of its own; the checkout stays as it is."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import demo, warm
from flows.project import read_yaml
from tests.experiment import git

PARAMS = "seed: 0  # kept\ndataset:\n  source: http://far/a.zip\ntrain:\n  finetune:\n    epochs: 5\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    (root / "stages").mkdir(parents=True)
    for name, text in {
        "params.yaml": PARAMS,
        "dvc.lock": "of another experiment",
        ".gitignore": "*.pyc\n.demo/\n",
        "stages/a.py": "old",
        "gone.py": "deleted before it was committed",
    }.items():
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "Checkout")
    (root / "stages" / "a.py").write_text("edited")
    (root / "new.py").write_text("not yet added")
    (root / "stages" / "a.pyc").write_text("ignored")
    (root / "gone.py").unlink()
    monkeypatch.setattr(demo, "ROOT", root)
    monkeypatch.setattr(demo, "DEMO", root / ".demo")
    monkeypatch.setattr(demo, "OVERRIDES", tmp_path / "demo.yaml")
    demo.OVERRIDES.write_text("dataset.source: synthetic\ntrain.finetune.epochs: 2\n")
    monkeypatch.chdir(root)
    return root


def fake_repro() -> None:
    """In place of the pipeline: the table that it leaves."""
    (demo.DEMO / "artifacts").mkdir(exist_ok=True)
    (demo.DEMO / "artifacts" / "comparison.md").write_text("| recipe | 0.780 |")


def test_the_copy_has_what_git_knows_and_edits_included(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "repro", fake_repro)
    demo.main()
    copied = {path.relative_to(demo.DEMO).as_posix() for path in demo.DEMO.rglob("*") if path.is_file()}
    copied = {name for name in copied if not name.startswith((".git/", "artifacts/"))}
    assert copied == {"params.yaml", ".gitignore", "stages/a.py", "new.py"}
    assert (demo.DEMO / "stages/a.py").read_text() == "edited"
    printed = capsys.readouterr().out
    assert "| recipe | 0.780 |" in printed
    assert "report: .demo/artifacts/report.html" in printed
    assert "consumers/predict.py --model .demo/artifacts/model.onnx" in printed


def test_the_checkout_stays_as_it_was(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = git(checkout, "status", "--porcelain")
    monkeypatch.setattr(demo, "repro", fake_repro)
    demo.main()
    assert (checkout / "params.yaml").read_text() == PARAMS
    assert git(checkout, "status", "--porcelain") == before


def test_the_demos_params_are_set_and_comments_kept(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "repro", fake_repro)
    demo.main()
    text = (demo.DEMO / "params.yaml").read_text()
    assert YAML(typ="safe").load(text) == {
        "seed": 0,
        "dataset": {"source": "synthetic"},
        "train": {"finetune": {"epochs": 2}},
    }
    assert "# kept" in text


def test_a_second_demo_updates_the_copy_and_commits_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "repro", fake_repro)
    demo.main()
    (checkout / "stages" / "a.py").write_text("edited again")
    (checkout / "new.py").unlink()
    demo.main()
    assert not (demo.DEMO / "new.py").exists()
    assert (demo.DEMO / "stages/a.py").read_text() == "edited again"
    assert len(git(demo.DEMO, "log", "--format=%s").splitlines()) == 2
    assert git(demo.DEMO, "show", "HEAD:stages/a.py") == "edited again"


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server to import libraries: the commands of these tests need none. A first demo has been copied."""

    @contextmanager
    def python(light: list[str]) -> Iterator[Path]:
        yield tmp_path

    monkeypatch.setattr(warm, "python", python)
    demo.DEMO.mkdir()
    (demo.DEMO / "params.yaml").write_text("train: {finetune: {}, scratch: {}}")


@pytest.mark.usefixtures("checkout", "cold")
def test_the_trainings_run_side_by_side_between_what_they_need_and_what_needs_them_and_so_do_evaluations_and_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command here leaves the name of its last stage, and those that are to run side by side wait for each other."""
    monkeypatch.setattr(demo, "num_cores", lambda: 6)
    script = (
        "import os, pathlib, sys, time\nname = sys.argv[-1]\nfound = sorted(map(str, pathlib.Path().glob('*.began')))\n"
        "pathlib.Path(f'{name}.began').write_text(f'{found} {os.environ.get(\"OMP_NUM_THREADS\")}')\n"
        "beside = [['train@finetune', 'train@scratch'], ['compare', 'check_parity']]\n"
        "for names in beside:\n"
        "    while name in names and not all(pathlib.Path(f'{n}.began').exists() for n in names): time.sleep(0.01)\n"
    )
    monkeypatch.setattr(demo, "dvc_command", lambda *words: [sys.executable, "-c", script, *words])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    demo.repro()
    began = {path.name.removesuffix(".began"): path.read_text() for path in demo.DEMO.glob("*.began")}
    assert set(began) == {"inspect", "train@finetune", "train@scratch", "compare", "check_parity", "repro"}
    assert began["inspect"] == "[] None"
    assert all("inspect.began" in began[f"train@{recipe}"] for recipe in ("finetune", "scratch"))
    assert all(began[f"train@{recipe}"].endswith(" 3") for recipe in ("finetune", "scratch"))
    assert all(
        f"train@{recipe}.began" in began[name]
        for recipe in ("finetune", "scratch")
        for name in ("compare", "check_parity")
    )
    assert all(f"'{name}.began'" in began["repro"] for name in ("compare", "check_parity"))
    assert began["repro"].endswith(" None")


@pytest.mark.usefixtures("checkout", "cold")
def test_the_stages_that_run_alone_are_those_that_dvc_yaml_has_in_an_order_that_gives_each_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commands beside each other share nothing that one of them writes."""
    commands: list[list[Sequence[str]]] = []
    monkeypatch.setattr(demo, "dvc_command", lambda *words: words)
    monkeypatch.setattr(demo, "run", lambda asked, _: commands.append(asked))
    demo.repro()
    graph = read_yaml(Path(__file__).parents[1] / "dvc.yaml")["stages"]
    trainings, (tested, shipped) = commands[1:3]
    stages = [[name.partition("@")[0] for name in words[2:]] for words in (*trainings, tested, shipped)]
    assert {name for names in stages for name in names} <= set(graph)
    for names, others in ((stages[-2], stages[-1]), (stages[-1], stages[-2])):
        read = {path for name in others for path in graph[name]["deps"]}
        assert not [out for name in names for out in written(graph[name]) for path in read if touch(out, path)]
    for names in stages:
        for position, name in enumerate(names):
            later = [out for other in names[position + 1 :] for out in written(graph[other])]
            assert not [out for out in later for path in graph[name]["deps"] if touch(out, path)]


def written(stage: dict[str, list[object]]) -> list[str]:
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries]


def touch(first: str, second: str) -> bool:
    """One path is the other or lies in it; names of recipes are left open in dvc.yaml, and no recipe's files concern here."""
    return "${" not in first + second and (
        first == second or f"{second}/".startswith(f"{first}/") or f"{first}/".startswith(f"{second}/")
    )


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
@pytest.mark.usefixtures("checkout", "cold")
def test_a_stage_that_fails_or_is_killed_ends_the_demo_with_its_code(
    monkeypatch: pytest.MonkeyPatch, ending: str, code: int
) -> None:
    script = f"import os, sys\nif sys.argv[-1] == 'train@scratch': {ending}"
    monkeypatch.setattr(demo, "dvc_command", lambda *words: [sys.executable, "-c", script, *words])
    with pytest.raises(SystemExit) as end:
        demo.repro()
    assert end.value.code == code


@pytest.mark.usefixtures("checkout", "cold")
def test_the_stages_find_the_python_that_runs_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    look = "import pathlib, shutil; pathlib.Path('found').write_text(shutil.which('python') or '')"
    monkeypatch.setattr(demo, "dvc_command", lambda *_: [sys.executable, "-c", look])
    demo.repro()
    found = (demo.DEMO / "found").read_text()
    assert Path(found).parent == Path(sys.executable).parent


def test_every_override_of_the_demo_is_a_param_of_the_experiment() -> None:
    params = YAML(typ="safe").load(demo.Path(__file__).parents[1] / "params.yaml")
    for key in YAML(typ="safe").load(demo.OVERRIDES):
        section = params
        for part in key.split("."):
            section = section[part]


def test_outside_a_repository_the_demo_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="not a git repository"):
        demo.project_files()
