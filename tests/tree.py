"""Write the tree of files in CONTRIBUTING.md, each with its own first line: python -m tests.tree (`make tree`)."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
START, END = "<!-- tree: written by `make tree` -->\n```\n", "```\n<!-- end of tree -->"
SHOWN = ("flows", "stages", "synthetic_images", "consumers", "benchmarks", ":(glob)*.py")
COMMENTS = {".yaml": "#", ".js": "//", ".mjs": "//"}
WIDTH = 118  # columns


def main() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    CONTRIBUTING.write_text(with_tree(text), encoding="utf-8")


def with_tree(text: str) -> str:
    """`text` with a fresh tree between its two marks. Raises ValueError where a mark is missing."""
    before, _ = text.split(START)
    _, after = text.split(END)
    return f"{before}{START}{tree()}{END}{after}"


def tree() -> str:
    """Every tracked file with a first line of its own, a folder before what it holds."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *SHOWN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = {Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()}
    folders = {parent for file in files for parent in file.parents if parent != Path()}
    paths = sorted(files | folders, key=lambda path: [(part != "__main__.py", part) for part in path.parts])
    return "".join(_line(path) for path in paths if _first_line(path) is not None)


def _line(path: Path) -> str:
    indent = "  " * (len(path.parts) - 1)
    name = f"{indent}{path.name}{'/' if (ROOT / path).is_dir() else ''}"
    line = f"{name:<28} {_first_line(path)}".rstrip()
    return f"{line if len(line) <= WIDTH else line[: WIDTH - 1].rsplit(' ', 1)[0] + ' …'}\n"


def _first_line(path: Path) -> str | None:
    """What a file says of itself first; a package's folder says what its __init__.py does. None is not shown."""
    file = ROOT / path
    if file.is_dir():
        inside = file / "__init__.py"
        return (_docstring(inside) or "") if inside.exists() else ""
    if file.suffix == ".py":
        return None if file.name == "__init__.py" else _docstring(file)
    if file.suffix not in COMMENTS:
        return None
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    mark = COMMENTS[file.suffix]
    return first.removeprefix(mark).strip() if first.startswith(mark) else None


def _docstring(file: Path) -> str | None:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return text.partition("\n")[0] if text else None


if __name__ == "__main__":
    main()
