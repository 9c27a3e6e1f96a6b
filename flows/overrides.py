"""Set params as `dvc exp run -S` does, and validate those of a whole run before it starts."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from omegaconf import OmegaConf
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from flows.project import parse_yaml, read_yaml, stage_environment

Settings = dict[str, Any]  # dotted key of params.yaml -> value
LONG = 10_000  # characters, from which a line would be folded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command `-S KEY=VALUE` and `--settings FILE`; `from_arguments` reads them."""
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of params.yaml")
    parser.add_argument(
        "--settings", action="append", default=[], type=Path, metavar="FILE", help="the same from YAML: flows/demo.yaml"
    )


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """The settings of a command line, those of `-S` over those of files. Raises ValueError."""
    settings: Settings = {}
    for file in arguments.settings:
        values = read_yaml(file)
        if not isinstance(values, dict):
            raise ValueError(f"{file}: write dotted keys of params.yaml, as `train.finetune.lr: 0.001`")
        settings |= values
    return settings | dict(_pair(text) for text in arguments.set)


def as_override(key: str, value: Any) -> str:
    """`key: value` in the grammar of Hydra, which DVC reads: added where params.yaml leaves the key out, else replaced.

    Text with a backslash, a dollar or a question mark in front does not come through unchanged; no param needs one.
    """
    return f"++{key}={_literal(value)}"


def applied(params: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The params as DVC will write them with these settings. Raises ValueError where a key leads through a value."""
    result = dict(params)
    for key, value in settings.items():
        section = result
        *sections, last = key.split(".")
        for name in sections:
            inner = section.get(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{key}: {name} is {inner!r} in params.yaml, not a section; correct the key")
            section[name] = dict(inner)
            section = section[name]
        old = section.get(last)
        section[last] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    if any("${" in value for value in settings.values() if isinstance(value, str)):  # another key's value
        return dict(OmegaConf.to_object(OmegaConf.create(result)))  # type: ignore[arg-type]
    return result


def write(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into a params file, where all other lines stay as they are (`dvc exp run -S` writes merged recipes out).

    Raises ValueError, also where a section that a recipe has from another one would change for both.
    """
    if not settings:
        return
    wanted, yaml = applied(read_yaml(path), settings), YAML()
    yaml.Representer, yaml.width, yaml.preserve_quotes = _Representer, LONG, True
    params = yaml.load(path.read_text(encoding="utf-8")) or {}
    for key in settings:
        *sections, last = key.split(".")
        section, values = params, wanted
        for name in sections:
            section, values = section.setdefault(name, {}), values[name]
        value = values[last]
        section[last] = yaml.load(plain(value)) if isinstance(value, float) else value  # 0.00005 and not 5e-05
    with StringIO() as text:
        yaml.dump(params, text)
        if parse_yaml(text.getvalue()) != wanted:
            raise ValueError(f"{path}: {', '.join(settings)} cannot be set without changing others; edit the file")
        path.write_text(text.getvalue(), encoding="utf-8")


def validate(root: Path, named: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Have the project's own code judge params, each pair (name for messages, params), in one process for all.

    Raises ValueError with each problem once, and how many of the named have it.
    """
    count = 0
    with TemporaryFile("w+") as lines:  # a file, because there may be a hundred thousand
        for pair in named:
            print(json.dumps(pair, default=str), file=lines)
            count += 1
        lines.seek(0)
        done = subprocess.run(
            [sys.executable, "-m", "stages.shared.params"],
            cwd=root, env=stage_environment(), stdin=lines, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise ValueError(f"{root}: params could not be validated: {done.stderr.strip()[-2000:]}")
    names: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, problem = json.loads(line)
        names.setdefault(problem, []).append(name)
    if names:
        problems = (f"  {problem} {_where(found, count)}".rstrip() for problem, found in names.items())
        raise ValueError("\n".join([f"{len(names)} problem(s) in the params, nothing was started:", *problems]))


class _Representer(RoundTripRepresenter):
    """ruamel's own writes nothing for null."""


_Representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null"))


def plain(value: Any) -> str:
    """A value as a person writes it: 0.00005, not 5e-05."""
    if isinstance(value, float):
        text = format(Decimal(repr(value)), "f")
        return text if "." in text else f"{text}.0"  # else it would be read as a whole number
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    return str(value)


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[^\s.=]+(\.[^\s.=]+)*", key):
        raise ValueError(f"-S {text}: write KEY=VALUE, as train.finetune.lr=0.001")
    try:
        return key, parse_yaml(value)
    except ValueError as error:
        raise ValueError(f"-S {text}: the value is not valid YAML: {error}") from None


def _where(names: list[str], total: int) -> str:
    if total == 1:
        return ""
    return f"(in {names[0]})" if len(names) == 1 else f"(in {len(names)} of {total} points, first {names[0]})"


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return plain(value)
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_literal(item)}' for key, item in value.items())}}}"
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
