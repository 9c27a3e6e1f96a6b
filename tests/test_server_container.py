"""The container's files fit the repository; no container is built here."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "consumers" / "server"


def pins(path: Path) -> dict[str, str]:
    return dict(line.split("==") for line in path.read_text().splitlines() if line and line[0] != "#")


def test_container_runs_the_versions_that_are_tested() -> None:
    wanted, tested = pins(SERVER / "requirements.txt"), pins(ROOT / "constraints.txt")
    assert wanted.pop("onnxruntime") == tested["onnxruntime-gpu"]
    assert wanted == {name: tested.get(name) for name in wanted}
    assert not {"torch", "onnx", "torchvision", "prefect", "dvc"} & set(wanted)


def test_container_copies_what_the_server_imports_and_is_not_root() -> None:
    lines = (SERVER / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert copied == {
        *("consumers/server/requirements.txt", "consumers/predict.py", "consumers/server/*.py", "artifacts/model.onnx")
    }
    sources = "".join(path.read_text() for path in SERVER.glob("*.py"))
    assert set(re.findall(r"from consumers(?:\.(\w+))? import", sources)) <= {"", "server"}
    assert set(re.findall(r"from consumers import (.+?)(?:  #|\n)", sources)) == {"predict"}
    user = next(line.split()[1] for line in lines if line.startswith("USER"))
    assert user.split(":")[0] not in ("0", "root")
    assert any(line.startswith("HEALTHCHECK") for line in lines)


def test_server_needs_what_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in project["dependencies"]}
    assert {"fastapi", "uvicorn", "prometheus-client", "python-multipart"} <= names
