"""The whole pipeline in a scratch folder, stage by stage; CUDA against the CPU; parity; predict.py."""

import json
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from benchmarks.acceptance.claims import NOT_RUN, Claim, at_most, hold, report
from benchmarks.acceptance.graph import stages_in_order
from benchmarks.acceptance.setup import ROOT, Setup
from stages.shared.files import read_json
from synthetic_images import TARGET_CLASSES, draw_target

DRAWN = {"dataset.source": "synthetic", "model.weights": "synthetic"}
SMALL = {
    "dataset.synthetic.num_train": 48, "dataset.synthetic.num_test": 24, "dataset.synthetic.side": 48,
    "pretrain.num_images": 40, "pretrain.epochs": 1, "preprocess.resize": 36, "preprocess.crop": 32, "inspect.size": None,
    "parity.int8": 10.0,  # a network that has hardly been trained has logits of any size
}  # fmt: skip
# Of the checkout: the code, the data set's corrections, and predict.py, which check_parity runs.
BESIDE_PARAMS = ("stages", "synthetic_images", "masking.py", "fixes.yaml", "consumers")
SMALL_RECIPE = {"epochs": 1, "batch_size": 16}
CUDA_PROBABILITY = 1e-3  # of predict.py on CUDA against the CPU, float32 without TF32


def drawn_claims(setup: Setup) -> Iterator[Claim]:
    yield from run_stages(setup, scratch(setup, "drawn", DRAWN))


def real_claims(setup: Setup) -> Iterator[Claim]:
    if setup.real is None:
        yield Claim("the pipeline on real photos", "", f"{NOT_RUN}: no --real PATH was given")
        return
    source = {"dataset.source": setup.real, "model.weights": setup.weights or "synthetic"}
    yield from run_stages(setup, scratch(setup, "real", source))


def device_claims(setup: Setup) -> Iterator[Claim]:
    """The first recipe, from the same artifacts, seed and plan, in float32: on the device, and on the CPU."""
    drawn = yield from finished(setup)
    recipe = next(iter(load(drawn / "params.yaml")["train"]))
    found = {}
    for device in (setup.device, "cpu"):
        folder = scratch(
            setup, f"on-{device}", {**DRAWN, "runtime.device": device, f"train.{recipe}.precision": "float32"}
        )
        link_artifacts(drawn, folder, leave_out=("train", "evaluate"))
        stages = [f"train@{recipe}", f"evaluate@{recipe}"]
        yield from run_stages(setup, folder, only=stages, prefix=f"on {device}: ")
        trained, tested = (
            read_json(folder / "artifacts" / kind / recipe / "metrics.json") for kind in ("train", "evaluate")
        )
        found[device] = trained["train_loss"], tested["test_accuracy"]
        yield report(f"{recipe} on {device}", f"loss {found[device][0]:.4f}, test accuracy {found[device][1]:.4f}")
    (loss, accuracy), (expected_loss, expected_accuracy) = found[setup.device], found["cpu"]
    yield at_most("train loss against the CPU's, relative", abs(loss - expected_loss) / expected_loss, 0.02)
    yield at_most("test accuracy against the CPU's", abs(accuracy - expected_accuracy), 0.02)


def parity_claims(setup: Setup) -> Iterator[Claim]:
    """check_parity on every runtime and precision, and predict.py, on the drawn experiment's model."""
    drawn = yield from finished(setup)
    strict = ("--require-gpu",) if setup.device == "cuda" else ()
    code, last = run_module(setup.python, drawn, ("stages.check_parity", *strict))
    yield hold(f"stages.check_parity {' '.join(strict)}".strip(), code == 0, last, "exit 0")
    for row in read_json(drawn / "artifacts" / "parity.json")["rows"]:
        yield parity_claim(row)
    yield from predict_claims(setup, drawn)


def parity_claim(row: Mapping[str, Any]) -> Claim:
    name = f"{', '.join(row[key] for key in ('runtime', 'precision', 'subject') if row[key])}: {row['check']}"
    error = "" if row["max_error"] is None else f"{row['max_error']:.2g}"
    time = f"{row['p50_ms']} ms, {row['images_per_second']} images/s" if "p50_ms" in row else ""
    limit = "" if row["limit"] is None else f"≤ {row['limit']:g}"
    verdict = {"passed": "holds", "failed": "fails"}.get(row["verdict"], f"{row['verdict']} {row['reason']}".strip())
    return Claim(name, "; ".join(part for part in (error, time, row["reason"]) if part), verdict, limit)


def predict_claims(setup: Setup, drawn: Path) -> Iterator[Claim]:
    """predict.py on the device answers as predict.py on the CPU."""
    photos, answers = draw_photos(drawn), []
    for provider in (setup.device, "cpu"):
        words = ["--json", "--provider", provider, "--model", str(drawn / "artifacts" / "model.onnx")]
        command = [sys.executable, str(ROOT / "consumers" / "predict.py"), *words, *map(str, photos)]
        run = subprocess.run(command, capture_output=True, text=True)
        yield hold(f"predict.py --provider {provider}", run.returncode == 0, last_line(run.stderr), "exit 0")
        answers.append([json.loads(line)["probabilities"] for line in run.stdout.splitlines()])
    name = f"predict.py --provider {setup.device}: probabilities against the CPU's"
    yield at_most(name, largest_difference(*answers), CUDA_PROBABILITY)


def draw_photos(folder: Path) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        Image.fromarray(draw_target(TARGET_CLASSES[i % len(TARGET_CLASSES)], 10_000 + i, 0, 200)).save(path)
    return paths


def largest_difference(found: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """Of any class's probability on any image; infinite where there are not as many answers, or none."""
    if not found or len(found) != len(expected):
        return float("inf")
    return max(abs(ours[name] - theirs[name]) for ours, theirs in zip(found, expected, strict=True) for name in theirs)


# scratch folders: params.yaml and artifacts, and links to the checkout's code


def scratch(setup: Setup, name: str, settings: Mapping[str, Any]) -> Path:
    """A folder with this experiment's params.yaml, dotted keys overridden."""
    folder = Path(setup.work) / (f"{name}-small" if setup.small else name)
    folder.mkdir(parents=True, exist_ok=True)
    for name in BESIDE_PARAMS:
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    params = load(ROOT / "params.yaml")
    small = {
        **SMALL,
        **{f"train.{recipe}.{key}": value for recipe in params["train"] for key, value in SMALL_RECIPE.items()},
    }
    for key, value in {"runtime.device": setup.device, **(small if setup.small else {}), **settings}.items():
        *sections, last = key.split(".")
        section = params
        for part in sections:
            section = section[part]
        section[last] = value
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)
    return folder


def load(path: Path) -> dict[str, Any]:
    params: dict[str, Any] = YAML(typ="safe").load(path)
    return params


def finished(setup: Setup) -> Generator[Claim, None, Path]:
    """The drawn experiment's folder; its stages are run here where the step `pipeline` has not run on this machine."""
    folder = scratch(setup, "drawn", DRAWN)
    if not (folder / "artifacts" / "parity.json").exists():
        yield from run_stages(setup, folder)
    return folder


def link_artifacts(source: Path, target: Path, leave_out: tuple[str, ...]) -> None:
    (target / "artifacts").mkdir(exist_ok=True)
    for path in (source / "artifacts").iterdir():
        link = target / "artifacts" / path.name
        if path.name not in leave_out and not link.exists():
            link.symlink_to(path)


def run_stages(setup: Setup, folder: Path, only: list[str] | None = None, prefix: str = "") -> Iterator[Claim]:
    """Run the stages in the graph's order; a claim each, and the scores that came out."""
    for stage in stages_in_order(ROOT / "dvc.yaml", load(folder / "params.yaml")):
        if only is None or stage.name in only:
            start = time.monotonic()
            code, last = run_module(setup.python, folder, stage.words)
            seconds = f"{time.monotonic() - start:.1f} s"
            yield hold(
                f"{prefix}stage {stage.name}", code == 0, seconds if code == 0 else f"{seconds}: {last}", "exit 0"
            )
    if only is None:
        for path in sorted((folder / "artifacts" / "evaluate").glob("*/metrics.json")):
            yield report(f"{path.parent.name}: test accuracy", f"{read_json(path)['test_accuracy']:.4f}")


def run_module(python: str, folder: Path, words: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and last line of `python -m words`, run in `folder`; its output is shown."""
    run = subprocess.run(
        [python, "-m", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(run.stdout, end="", flush=True)
    return run.returncode, last_line(run.stdout)


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
