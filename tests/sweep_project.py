"""A small real git and DVC project to sweep over: `train@<recipe>` scores `lr` and `seed`, `alone` scores nothing that has a seed.

`prepare`, `train` and `evaluate` leave a line in `$SWEEP_NOTES/prepared`, `trained` and `evaluated` each time that they run. A
file `$SWEEP_NOTES/knob` is python that `train` executes first. The better a point is in validation, the worse it is in test.
"""

from pathlib import Path

from tests.toy_project import commit_project

DVC_YAML = """\
stages:
  prepare:
    cmd: python stages/stage.py prepare
    params: [width]
    outs: [artifacts/data]
  train:
    matrix:
      recipe: ${train}
    cmd: python stages/stage.py train ${item.recipe}
    deps: [artifacts/data, stages/stage.py]
    params:
      - train.${item.recipe}
    outs: ["artifacts/train/${item.recipe}/metrics.json"]
  evaluate:
    matrix:
      recipe: ${train}
    cmd: python stages/stage.py evaluate ${item.recipe}
    deps: ["artifacts/train/${item.recipe}/metrics.json", stages/stage.py]
    outs: ["artifacts/evaluate/${item.recipe}/metrics.json"]
  alone:
    cmd: python stages/stage.py alone
    deps: [artifacts/data]
    outs: [artifacts/alone/metrics.json]
"""
PARAMS = """\
width: 3
dataset: {source: synthetic, fixes: fixes.yaml}
model: {weights: synthetic}
train:
  finetune: {lr: 0.1, seed: null}
  scratch: {lr: 0.1, seed: null}
"""
STAGE_PY = """\
import json, os, pathlib, sys, time
import ruamel.yaml
stage, notes, out = sys.argv[1], pathlib.Path(os.environ["SWEEP_NOTES"]), pathlib.Path("artifacts")
params = ruamel.yaml.YAML(typ="safe").load(pathlib.Path("params.yaml"))
def note(file, text):
    with open(notes / file, "a") as f:
        f.write(text + os.linesep)
def write(folder, **scores):
    (out / folder).mkdir(parents=True, exist_ok=True)
    (out / folder / "metrics.json").write_text(json.dumps({**scores, "text": "is no score"}))
if stage == "prepare":
    note("prepared", os.getcwd())
    (out / "data").write_text("x" * params["width"])
elif stage == "alone":
    write("alone", validation_accuracy=0.5, validation_loss=0.9)
elif stage == "evaluate":
    trained = json.loads((out / "train" / sys.argv[2] / "metrics.json").read_text())
    note("evaluated", f"{sys.argv[2]} {params['train'][sys.argv[2]]['lr']}")
    write(f"evaluate/{sys.argv[2]}", test_accuracy=1 - trained["validation_accuracy"], test_loss=0.25)
else:
    recipe = params["train"][sys.argv[2]]
    if (notes / "knob").exists():
        exec((notes / "knob").read_text())
    note("trained", f"{sys.argv[2]} {recipe['lr']} {recipe['seed']} {os.getcwd()}")
    score = recipe["lr"] + 0.1 * (recipe["seed"] or 0)
    write(f"train/{sys.argv[2]}", validation_accuracy=score, validation_loss=1 - score)
"""


def create(root: Path) -> Path:
    """Make the project in `root` (a new folder) and commit it."""
    return commit_project(root, {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS, "stages/stage.py": STAGE_PY})
