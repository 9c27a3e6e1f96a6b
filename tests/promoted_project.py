"""A small real git and DVC project whose nightlies leave what promotion reads, as its params say."""

from pathlib import Path

from tests.toy_project import commit_project

DVC_YAML = """\
stages:
  all:
    cmd: python stages/stage.py
    params: [recipe, wrong, failed_rows, latency, num_bytes, ece, images]
    outs:
      - artifacts/model.onnx
      - artifacts/parity.json
      - artifacts/selection.json
      - artifacts/evaluate
      - artifacts/preprocess/test/files.json
artifacts:
  model: {path: artifacts/model.onnx, type: model}
"""
PARAMS = "{recipe: finetune, wrong: 10, failed_rows: 0, latency: 5.0, num_bytes: 1000, ece: 0.02, images: all}\n"
STAGE_PY = """\
import csv, json, pathlib
import ruamel.yaml
out = pathlib.Path("artifacts")
p = ruamel.yaml.YAML(typ="safe").load(pathlib.Path("params.yaml"))
def write(name, value):
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(json.dumps(value))
names = [f"test/{'hotdog' if i % 2 else 'other'}/{i:03}.png" for i in range(200)]
write("preprocess/test/files.json", [{"path": name, "sha256": f"{p['images']}{name}"} for name in names])
folder = out / "evaluate" / p["recipe"]
folder.mkdir(parents=True)
with open(folder / "predictions.csv", "w", newline="") as file:
    table = csv.DictWriter(file, ["path", "label", "prediction"])
    table.writeheader()
    for i, name in enumerate(names):
        table.writerow({"path": name, "label": name.split("/")[1], "prediction": name.split("/")[1] if i >= p["wrong"] else "wrong"})
write(f"evaluate/{p['recipe']}/metrics.json", {"test_accuracy": 1 - p["wrong"] / 200, "ece": p["ece"]})
write("selection.json", {"recipe": p["recipe"]})
speed = {"runtime": "ONNX Runtime CPU", "precision": "fp32", "batch": 1, "verdict": "passed"}
failed = [{"runtime": "r", "precision": "fp32", "check": "logits", "verdict": "failed"}] * p["failed_rows"]
write("parity.json", {"rows": [{**speed, "p50_ms": p["latency"]}, *failed]})
(out / "model.onnx").write_bytes(b"m" * p["num_bytes"])
"""


def create(root: Path) -> Path:
    """Make the project in `root` (a new folder) and commit it."""
    return commit_project(root, {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS, "stages/stage.py": STAGE_PY})
