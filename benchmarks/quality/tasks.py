"""The tasks: photo sets given by a folder, and drawn ones, each prepared by the pipeline's own stages in a folder."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from stages import features
from stages.download import __main__ as download
from stages.inspect import __main__ as inspect
from stages.preprocess import __main__ as preprocess
from stages.shared import artifacts
from stages.shared.dataset import TrainSplit, load_manifest, load_test_split, load_train_split
from stages.shared.transforms import Transform

ARCHITECTURE = "mobilenet_v2"
WEIGHTS = "mobilenet_v2-imagenet.pth"
CROP, RESIZE = 112, 128  # pixels: a quarter of the default's work
DRAWN = {"drawn-60": (60, 400), "drawn-300": (300, 1000)}  # name -> training and test images
ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


@dataclass(frozen=True)
class Task:
    """One task, prepared; the arrays are memory maps of `folder`'s files."""

    folder: Path
    train: TrainSplit
    test_pixels: np.ndarray  # (m, CROP, CROP, 3) uint8
    test_labels: np.ndarray  # (m,) int64
    class_names: tuple[str, ...]
    transform: Transform
    source: Path  # the source model's weights
    feature_seconds: float  # CPU seconds that the training images' features took


def code_digest() -> str:
    code = sorted((ROOT / "stages").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:8]


def task_names(real: Path) -> list[str]:
    """All tasks, the smallest first."""
    sizes = {path.stem: path.stat().st_size for path in [*real.glob("tasks/*.zip"), *real.glob("*.zip")]}
    return [*sorted(sizes, key=lambda name: sizes[name]), *DRAWN]


def prepare(name: str, real: Path, work: Path) -> Task:
    """The task `name` in `work`/name: downloaded, preprocessed, its features computed and inspected, unless that is done."""
    folder = work / name
    seconds = folder / f"feature_seconds-{code_digest()}"  # other code may make other features
    with working_in(folder):
        if not seconds.exists():
            write_params(name, real)
            download.main("dataset")
            download.main("model")
            preprocess.main()
            start = time.process_time()
            features.main()
            taken = training_share() * (time.process_time() - start)
            inspect.main()
            seconds.write_text(str(taken))
        manifest, test = load_manifest(artifacts.MANIFEST), load_test_split(artifacts.TEST_SPLIT)
        return Task(
            folder=folder,
            train=load_train_split(artifacts.TRAIN_SPLIT),
            test_pixels=test.pixels[:],
            test_labels=np.asarray(test.labels),
            class_names=manifest.class_names,
            transform=manifest.transform,
            source=folder / artifacts.SOURCE_MODEL / "weights.safetensors",
            feature_seconds=float(seconds.read_text()),
        )


def training_share() -> float:
    """Of the features' values, those of training images: the test's are none of training's work."""
    train, test = (sum(values.size for values in load_file(path).values()) for path in feature_files())
    return train / (train + test)


def feature_files() -> tuple[Path, Path]:
    return artifacts.FEATURES / "train.safetensors", artifacts.FEATURES / "test.safetensors"


def write_params(name: str, real: Path) -> None:
    """params.yaml: the checkout's own, with this task's data and backbone."""
    values = YAML(typ="safe").load(PARAMS)
    values["model"] = {"architecture": ARCHITECTURE, "weights": str(real / WEIGHTS)}
    values["preprocess"] |= {"crop": CROP, "resize": RESIZE}
    values["runtime"] |= {"device": "cpu"}
    values["inspect"]["size"] = None  # a larger look at labels is none of training's work
    if name in DRAWN:
        num_train, num_test = DRAWN[name]
        values["dataset"] |= {
            "source": "synthetic",
            "synthetic": {"num_train": num_train, "num_test": num_test, "side": 128},
        }
    else:
        (path,) = [*real.glob(f"tasks/{name}.zip"), *real.glob(f"{name}.zip")]
        values["dataset"] |= {"source": str(path)}
    YAML().dump(values, Path("params.yaml"))
    shutil.copy(ROOT / "fixes.yaml", ".")


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Run the block in `folder`, on one thread: threads that wait for each other cost more than they bring on a busy machine."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    torch.set_num_threads(1)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
