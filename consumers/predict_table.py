"""Write predict.py's answers into a table as they come: CSV, JSON lines, or Parquet. For `predict.py --output`.

One row an image and one line a row, failed ones with the reason. A run that was killed leaves whole rows, but for a last
half one; --resume cuts that off and tries what had failed again. Parquet cannot grow row by row: the rows are kept as JSON lines
beside it until all are there (needs pyarrow).
"""

import contextlib
import csv
import importlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

Add = Callable[[str, dict[str, Any]], None]
PARQUET_ROWS = 10_000  # in memory at once
SHOWN_EVERY = 0.2  # seconds


class TableError(Exception):
    """The file cannot be written or gone on with."""


@contextlib.contextmanager
def open_table(path: Path, class_names: list[str], resume: bool, total: int | None) -> Iterator[tuple[Add, set[str]]]:
    """The writer that takes a name, on one line, and its record, and the names in the rows that are there.

    `total` is the number of images, for the progress bar, where it is known.
    """
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise TableError(f"{path}: ends in none of .csv, .jsonl, .parquet")
    rows = path.with_suffix(".parquet.rows.jsonl") if path.suffix == ".parquet" else path
    for there in filter(Path.exists, (path, rows)):  # the rows alone after a run that was killed
        if not there.is_file():
            raise TableError(f"{there}: is no regular file")
        if not resume:
            raise TableError(f"{there}: is there already; go on with it by --resume, or delete it")
    if path.suffix == ".parquet":
        import_pyarrow()
    if rows != path and path.exists() and not rows.exists():
        from_parquet(path, rows)
    columns = ["image", "class", "decision", "error", "familiarity", *(f"probability:{name}" for name in class_names)]
    done = take_over(rows, columns) if resume else set()
    bar = Bar(len(done), total)
    try:
        with rows.open("a" if resume else "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            if rows.suffix == ".csv" and not file.tell():
                csv.writer(file).writerow(columns)

            def add(name: str, known: dict[str, Any]) -> None:
                write_row(file, rows.suffix, columns, {"image": name, **known})
                bar.step()

            yield add, done
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}; mend that and go on with --resume") from None
    finally:
        bar.close()
    if rows != path:
        to_parquet(rows, path, columns)


def write_row(file: TextIO, suffix: str, columns: list[str], row: dict[str, Any]) -> None:
    if suffix == ".csv":
        csv.DictWriter(file, columns, extrasaction="ignore").writerow(flat(row))
    else:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """The same with a column a class."""
    probabilities = {f"probability:{name}": value for name, value in row.get("probabilities", {}).items()}
    return {**row, **probabilities, "error": " ".join(row.get("error", "").split())}


def take_over(rows: Path, columns: list[str]) -> set[str]:
    """The images that are answered in the rows that are there; failed ones, to be tried again, and a last half row are cut out.

    Raises TableError for another table.
    """
    if not rows.exists():
        return set()
    names: set[str] = set()
    again: set[int] = set()  # numbers of lines
    with rows.open("rb") as file:
        for number, line in enumerate(file):
            name, failed = read_row(line, rows, number, columns) if line.endswith(b"\n") else ("", True)
            if failed:
                again.add(number)
            elif name:
                names.add(name)
    if again:
        part = rows.with_name(rows.name + ".part")
        with rows.open("rb") as file, part.open("wb") as kept:
            kept.writelines(line for number, line in enumerate(file) if number not in again)
        part.replace(rows)
    return names


def read_row(line: bytes, rows: Path, number: int, columns: list[str]) -> tuple[str, bool]:
    """The image, nothing for the columns' names, and whether it failed."""
    try:
        if rows.suffix != ".csv":
            row = json.loads(line)
            return str(row["image"]), "error" in row
        (cells,) = csv.reader(io.StringIO(line.decode(), newline=""))
    except (ValueError, KeyError, TypeError):
        raise TableError(f"{rows}: line {number + 1} is no row of this table; choose another file") from None
    if len(cells) != len(columns) or (number == 0 and cells != columns):
        raise TableError(f"{rows}: line {number + 1} has other columns than this model's; choose another file")
    return (cells[0], bool(cells[columns.index("error")])) if number else ("", False)


def import_pyarrow() -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise TableError("Parquet needs pyarrow: pip install pyarrow; or write .csv or .jsonl") from None


def to_parquet(rows: Path, path: Path, columns: list[str]) -> None:
    """Turn the rows into the table, which appears whole; then they are deleted."""
    pyarrow = import_pyarrow()
    texts = {"image", "class", "decision", "error"}
    schema = pyarrow.schema([(c, pyarrow.string() if c in texts else pyarrow.float32()) for c in columns])
    part = path.with_suffix(".parquet.part")
    with rows.open(encoding="utf-8") as file, pyarrow.parquet.ParquetWriter(part, schema) as writer:
        while lines := [line for line, _ in zip(file, range(PARQUET_ROWS), strict=False)]:
            records = [{**dict.fromkeys(columns), **flat(json.loads(line))} for line in lines]
            writer.write_table(pyarrow.Table.from_pylist(records, schema=schema))
    part.replace(path)
    rows.unlink()


def from_parquet(path: Path, rows: Path) -> None:
    """The rows of a finished table, to go on with."""
    pyarrow = import_pyarrow()
    part = rows.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            for row in batch.to_pylist():
                probabilities = {key: row.pop(key) for key in list(row) if key.startswith("probability:")}
                known = {key: value for key, value in row.items() if value not in (None, "")}
                if known.get("class"):
                    known["probabilities"] = {key.partition(":")[2]: value for key, value in probabilities.items()}
                file.write(json.dumps(known, ensure_ascii=False) + "\n")
    part.replace(rows)


class Bar:
    """Progress on a terminal's stderr; elsewhere silent."""

    def __init__(self, num_done: int, total: int | None) -> None:
        self.first, self.count, self.total = num_done, num_done, total
        self.start = self.shown = time.monotonic()
        self.visible = sys.stderr.isatty()

    def step(self) -> None:
        self.count += 1
        if self.visible and time.monotonic() - self.shown >= SHOWN_EVERY:
            self.show()

    def show(self) -> None:
        self.shown = time.monotonic()
        rate = (self.count - self.first) / max(self.shown - self.start, 1e-9)
        text = f"{self.count:,} images, {rate:.0f}/s"
        if self.total:
            filled = min(30, 30 * self.count // self.total)
            left = max(0, self.total - self.count) / max(rate, 1e-9)
            text = (
                f"[{'#' * filled}{'.' * (30 - filled)}] {self.count:,}/{self.total:,}, {rate:.0f}/s, {left:.0f} s left"
            )
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.visible:
            self.show()
            print(file=sys.stderr)
