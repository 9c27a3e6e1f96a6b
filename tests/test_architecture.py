"""The layout keeps its promises: dvc.yaml, stages/ and the imports tell one story."""

import ast
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from tests.tree import CONTRIBUTING, with_tree

ROOT = Path(__file__).parents[1]
STAGES = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
CODE = ("stages", "synthetic_images", "masking")  # the packages and modules that stages are made of
# DVC already tracks what these modules carry: values (`params:`) and paths (`deps:`, `outs:`).
CARRIERS = {Path("stages/shared/params.py"), Path("stages/shared/artifacts.py")}


def module_file(name: str) -> Path | None:
    """The file, or the folder of a package, that a dotted module name stands for; paths relative to the root."""
    path = Path(*name.split("."))
    if (ROOT / path).is_dir():
        return path
    return path.with_suffix(".py") if (ROOT / path).with_suffix(".py").exists() else None


def unit(path: Path) -> Path:
    """What dvc.yaml lists: a stage's folder or a package as a whole, else the file itself."""
    if path.parts[0] == "synthetic_images":
        return Path(path.parts[0])
    depth = 3 if path.parts[:2] == ("stages", "shared") else 2
    return Path(*path.parts[:depth])


def sources(path: Path) -> list[Path]:
    return [path] if path.suffix == ".py" else [file.relative_to(ROOT) for file in (ROOT / path).rglob("*.py")]


def imported_units(start: Path) -> set[Path]:
    """Every unit of stages/ and synthetic_images/ that importing `start` executes, itself included."""
    found, todo = {start}, [start]
    while todo:
        for file in sources(todo.pop()):
            for node in ast.walk(ast.parse((ROOT / file).read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
                else:
                    continue
                files = (module_file(name) for name in names if name.split(".")[0] in CODE)
                units = {unit(file) for file in files if file} - {Path("stages/shared"), Path("stages")}
                todo += units - found
                found |= units
    return found


def stage_unit(name: str) -> Path:
    found = module_file(f"stages.{name}")
    assert found, f"dvc.yaml has a stage {name}, stages/ has not"
    return found


def test_each_dvc_stage_is_one_module():
    modules = {
        path.stem for path in (ROOT / "stages").iterdir() if not path.name.startswith("_") and path.name != "shared"
    }
    assert modules == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_every_module_it_imports(name):
    listed = {Path(dep) for dep in STAGES[name]["deps"] if Path(dep).parts[0].removesuffix(".py") in CODE}
    assert listed == imported_units(stage_unit(name)) - CARRIERS


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_imports_no_other_stage(name):
    others = {stage_unit(other) for other in STAGES if other != name}
    assert not imported_units(stage_unit(name)) & others


def test_shared_modules_serve_at_least_two_stages():
    closures = {name: imported_units(stage_unit(name)) for name in STAGES}
    for module in (ROOT / "stages/shared").iterdir():
        if module.name.startswith("_"):
            continue
        users = [name for name in STAGES if module.relative_to(ROOT) in closures[name]]
        assert len(users) >= 2, f"{module.name} serves only {users}: move it into that stage"


def outs(name: str) -> set[str]:
    """The paths that a stage writes, its metrics and plots included."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in STAGES[name].get(kind, [])]
    return {out if isinstance(out, str) else next(iter(out)) for out in listed}


def overlap(path: str, other: str) -> bool:
    """Whether one of the two is the other, or a folder around it."""
    first, second = Path(path), Path(other)
    return first == second or first in second.parents or second in first.parents


def names_used(file: Path) -> set[str]:
    """Every imported name, attribute and string of a file."""
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return imported | attributes | {str(node.value) for node in nodes if isinstance(node, ast.Constant)}


EVALUATIONS = {"evaluate", "zero_shot"}
TEST_LABELS = "artifacts/preprocess/test/labels.npy"


def test_only_evaluations_depend_on_the_test_labels():
    readers = {name for name in STAGES if any(overlap(dep, TEST_LABELS) for dep in STAGES[name]["deps"])}
    assert readers == EVALUATIONS
    before = TEST_LABELS.replace("labels", "labels_before_fixes")
    assert [name for name in STAGES if any(overlap(dep, before) for dep in STAGES[name]["deps"])] == ["evaluate"]


def test_only_evaluations_open_the_test_labels():
    """In the code too: the one function that reads them is imported, and their file is named, nowhere else."""
    readers = {
        name
        for name in STAGES
        for file in sources(stage_unit(name))
        if names_used(file) & {"load_test_split", "load_labels_before_fixes", "test/labels.npy"}
    }
    assert readers == EVALUATIONS
    naming = {file for module in CODE for file in sources(Path(module)) if "labels.npy" in names_used(file)}
    assert naming == {Path("stages/shared/dataset.py"), Path("stages/preprocess/store.py")}


def test_what_evaluations_found_is_read_by_those_alone_who_tell_it():
    """predictions.csv has the test labels too. Of the flows promotion alone reads it; no sweep and no search does."""
    readers = {name for name in STAGES for file in sources(stage_unit(name)) if "predictions.csv" in names_used(file)}
    assert readers == {"evaluate", "compare", "report"}
    flows = [file.relative_to(ROOT) for file in (ROOT / "flows").rglob("*.py")]
    naming = {file for file in flows if any("predictions.csv" in name for name in names_used(file))}
    assert naming == {Path("flows/promote/measured.py")}
    assert not [file for file in flows if any("labels.npy" in name for name in names_used(file))]
    assert not [file for file in flows if names_used(file) & {"load_test_split", "load_labels_before_fixes"}]


@pytest.mark.parametrize("name", sorted({"features", "inspect", "train", "select", "export"} & set(STAGES)))
def test_nothing_that_chooses_comes_after_an_evaluation(name):
    found, todo = {name}, [name]
    while todo:
        deps = STAGES[todo.pop()]["deps"]
        before = {other for other in STAGES for dep in deps for out in outs(other) if overlap(dep, out)}
        todo += before - found
        found |= before
    assert not found & EVALUATIONS


def test_every_out_is_an_artifact():
    for name in STAGES:
        assert all(path.startswith("artifacts/") for path in outs(name)), name


def test_every_requirement_is_pinned():
    """A requirement without an exact version in constraints.txt would change under a user's feet."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and line[0] != "#")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {canonicalize_name(Requirement(requirement).name) for requirement in wanted}
    assert names <= {canonicalize_name(name) for name in pins}
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.+!]*", version) for version in pins.values())


def test_contributing_lists_every_file_as_it_is():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    assert with_tree(text) == text, "CONTRIBUTING.md's list of files is stale: run `make tree`"
