"""The packages that the steps import, read from the code itself, and what of them this machine lacks.

python -m benchmarks.acceptance.packages needs nothing but Python, so a bare machine can be asked before anything is run.
"""

import ast
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = ("benchmarks", "consumers", "flows", "masking", "stages", "synthetic_images", "tests")


def main() -> None:
    missing = missing_packages()
    print("\n".join(missing) or "every package that the steps import is here")
    raise SystemExit(1 if missing else 0)


def missing_packages() -> list[str]:
    """Each module that cannot be imported here, with a file that needs it."""
    needed = {module: file for file in imported_files() for module in imports(file) if module.split(".")[0] not in OWN}
    top_level = {module.split(".")[0]: file for module, file in needed.items()}
    return [
        f"{module} is not installed; {file.relative_to(ROOT)} needs it"
        for module, file in sorted(top_level.items())
        if module not in sys.stdlib_module_names and find_spec(module) is None
    ]


def imported_files() -> list[Path]:
    """The files of this project that the steps run or import."""
    tests = [path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    programs = [ROOT / "consumers/predict.py", ROOT / "tests/conftest.py"]
    todo = [*(ROOT / "benchmarks/acceptance").glob("*.py"), *(ROOT / "stages").rglob("*.py"), *programs, *tests]
    found = set(todo)
    while todo:
        modules = (ROOT.joinpath(*module.split(".")) for module in imports(todo.pop()) if module.split(".")[0] in OWN)
        files = {file for path in modules for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()}
        todo += files - found
        found |= files
    return sorted(found)


def imports(file: Path) -> Iterator[str]:
    """The modules that a file imports whenever it is imported itself; what a function imports may be absent."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


if __name__ == "__main__":
    main()
