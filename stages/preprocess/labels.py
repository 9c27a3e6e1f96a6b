"""Read which files belong to which class and split from a CSV that lies among them."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.preprocess.find import SPLIT_NAMES, Layout, Source, printable

KEY = "dataset.labels"
MAX_NAMED = 3  # rows that an error names
ROLES = {name: role for role, names in SPLIT_NAMES.items() for name in names}


@dataclass(frozen=True)
class Row:
    line: int  # in the CSV, from 1
    file: str  # as the CSV has it, with /
    label: str
    split: str  # any case; empty where there is no such column or cell


def read_labels(images_dir: Path, labels: str) -> Layout:
    """Read the CSV at images_dir/labels: columns `file` and `label`, perhaps `split`, in any order, others are ignored.

    A file is named relative to the CSV's folder, or to the only folder beside it. Files that no row names belong to no class.
    Raises ValueError naming the first rows that cannot be meant, and what to do.
    """
    path = images_dir / labels
    rows = _read_rows(path)
    folder = _folder_of(path, rows)
    names = {row.line: os.path.normpath(folder.relative_to(images_dir) / row.file) for row in rows}
    _refuse(
        path, [r for r in rows if not _lies_in(images_dir, names[r.line])], "name no file", "correct or delete them"
    )
    _refuse(path, _repeated(rows, names), "name a file again", "keep one row a file")
    _refuse(path, [row for row in rows if not row.label], "have no label", "fill them in")
    class_names = sorted({row.label for row in rows})
    if len(class_names) < 2:
        listed = ", ".join(class_names) or "none"
        raise ValueError(f"{KEY}: {path}: a classifier needs two labels or more, found {listed}; add the others")
    splits, remarks = _splits(path, rows)
    sources = [
        Source(printable(PurePosixPath(names[row.line]).as_posix()), images_dir / names[row.line],
               class_names.index(row.label), splits[row.split])
        for row in rows
    ]  # fmt: skip
    sources.sort(key=lambda source: source.path)
    ignored = _unlisted(images_dir, {path, *(source.file for source in sources)})
    if ignored:
        remarks.append(f"{labels} names {len(rows)} files; {len(ignored)} others are left out")
    folders: dict[str | None, tuple[Path, ...]] = dict.fromkeys(sorted(set(splits.values()), key=str), ())
    return Layout(tuple(class_names), folders, tuple(sources), ignored, tuple(remarks))


def _read_rows(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)  # Excel writes semicolons where numbers have decimal commas
            columns = [cell.strip().casefold() for cell in next(csv.reader([header], delimiter=delimiter), [])]
            if not {"file", "label"} <= set(columns):
                found = ", ".join(filter(None, columns)) or "none"
                raise ValueError(
                    f"{KEY}: {path}: needs the columns file and label, perhaps split; its first line has {found}"
                )
            reader = csv.DictReader(file, columns, restkey="", restval="", delimiter=delimiter)
            rows = [_row(reader.line_num + 1, cells) for cells in reader]
    except FileNotFoundError:
        raise ValueError(f"{KEY}: {path}: no such file; run download") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{KEY}: {path}: cannot be read: {error}; save it as a CSV in UTF-8") from None
    return rows


def _row(line: int, cells: dict[str, str]) -> Row:
    file, label, split = (cells.get(column, "").strip() for column in ("file", "label", "split"))
    return Row(line, file.replace("\\", "/"), label, split.casefold())


def _folder_of(path: Path, rows: Sequence[Row]) -> Path:
    """The folder that the names start from: the CSV's own, or the only one beside it, whichever has more of the files."""
    inner = [entry for entry in path.parent.iterdir() if entry.is_dir()]
    folders = [path.parent, *inner] if len(inner) == 1 else [path.parent]
    return max(folders, key=lambda folder: sum((folder / row.file).is_file() for row in rows))


def _lies_in(images_dir: Path, name: str) -> bool:
    return not name.startswith(("/", "../")) and (images_dir / name).is_file()


def _repeated(rows: Sequence[Row], names: dict[int, str]) -> list[Row]:
    first = {names[row.line]: row for row in reversed(rows)}
    return [row for row in rows if first[names[row.line]] is not row]


def _splits(path: Path, rows: Sequence[Row]) -> tuple[dict[str, str | None], list[str]]:
    """The split that each spelling in the CSV means, and what was decided about validation rows."""
    spelled = {row.split for row in rows}
    if spelled == {""}:
        return {"": None}, []
    known = ", ".join(sorted(ROLES))
    _refuse(
        path, [row for row in rows if row.split not in ROLES], "have no split that is known", f"write one of {known}"
    )
    roles = {ROLES[name] for name in spelled}
    if "training" not in roles or len(roles) == 1:
        raise ValueError(
            f"{KEY}: {path}: its rows are all of {', '.join(sorted(spelled))}; "
            "give both train and test, or leave the column split out"
        )
    stand_in = "train" if "test" in roles else "test"
    splits: dict[str, str | None] = {"training": "train", "validation": stand_in, "test": "test"}
    said = {"train": "are part of training, whose folds are what recipes are validated on",
            "test": "serve as the test split, for there are no test rows"}  # fmt: skip
    remarks = [f"validation rows {said[stand_in]}"] if "validation" in roles else []
    return {name: splits[ROLES[name]] for name in spelled}, remarks


def _refuse(path: Path, rows: Sequence[Row], problem: str, advice: str) -> None:
    if rows:
        named = ", ".join(f"line {row.line} ({row.file or 'empty'})" for row in rows[:MAX_NAMED])
        rest = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
        raise ValueError(f"{KEY}: {path}: rows {problem}: {named}{rest}; {advice}")


def _unlisted(images_dir: Path, known: Iterable[Path]) -> tuple[str, ...]:
    known = set(known)
    files = [Path(parent, name) for parent, _, names in os.walk(images_dir) for name in names]
    return tuple(sorted(printable(f.relative_to(images_dir).as_posix()) for f in files if f not in known))
