"""Read a YAML file as a typed value: one that comes with the project, by its name, or any other, by its path."""

import re
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from flows.project import read_yaml

Model = TypeVar("Model", bound=BaseModel)


def load(model: type[Model], name: str, folder: Path, what: str) -> Model:
    """`name` is that of a file in `folder` or a path; `what` says in messages what the file holds, as `sweep`.

    Raises ValueError naming each thing that is wrong in it.
    """
    path = folder / f"{name}.yaml" if re.fullmatch(r"\w+", name) else Path(name)
    ready = sorted(file.stem for file in folder.glob("*.yaml"))
    if not path.exists():
        raise ValueError(f"{path}: no such {what}; there are {', '.join(ready)}, or name a YAML file")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a valid {what}: write keys and values, as in {folder.name}/{ready[0]}.yaml")
    try:
        return model.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, p['loc'])) or what}: {p['msg']}" for p in error.errors()]
        raise ValueError("\n".join([f"{path}: {error.error_count()} problem(s)", *problems])) from None
