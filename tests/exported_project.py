"""A small exported experiment, made once a test run by the stages themselves: drawn photos, a MobileNetV3 with a fitted head.

Nothing is trained: the head's last layer is solved for, so that the logits have the margins of a real classifier.
"""

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from stages.export import __main__ as export
from stages.preprocess import __main__ as preprocess
from stages.shared import artifacts
from stages.shared.checkpoint import Facts, save_checkpoint
from stages.shared.dataset import fixed_crops, load_manifest, load_test_split, load_train_split
from stages.shared.held_out import Validation, save_folds, save_validation
from stages.shared.model import build_model
from stages.shared.transforms import Transform, normalize
from tests.experiment import write_params

ROOT = Path(__file__).parent.parent
ARCHITECTURE, RESIZE, CROP = "mobilenet_v3_small", 72, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("hotdog", "not-hotdog")


@functools.cache
def exported_project() -> Path:
    """The folder of the one export that all tests share; copy it before changing anything."""
    folder = Path(tempfile.mkdtemp(prefix="exported-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.chdir(folder):
        write_params(
            folder,
            {
                "model.architecture": ARCHITECTURE,
                "preprocess.resize": RESIZE,
                "preprocess.crop": CROP,
                "parity.fp16": 0.04,
                "parity.int8": 4.0,  # random features are rougher than trained ones
                "parity.probability": 0.02,  # and a pixel that is one level off moves them more
                "export.max_accuracy_drop": 0.3,
                "export.min_speedup": 0.0,  # whether a file is there must not hang on the clock
            },
        )
        (folder / "consumers").mkdir()
        shutil.copy(ROOT / "consumers" / "predict.py", folder / "consumers")
        write_photos(artifacts.SOURCE_DATASET / "images")
        preprocess.main()
        write_checkpoint()
        save_folds(artifacts.INSPECTION / "folds.npz", np.arange(24) % 4)
        export.main()
    return folder


@contextlib.contextmanager
def copied_project(target: Path) -> Iterator[Path]:
    """A copy in `target` of its own, as the working folder."""
    shutil.copytree(exported_project(), target / "project")
    with contextlib.chdir(target / "project"):
        yield target / "project"


def write_photos(images: Path) -> None:
    """Reddish and bluish blobs in several sizes; one test image lies on its side (EXIF), one is transparent."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(CLASSES):
            (images / split / name).mkdir(parents=True)
            for index in range(count):
                size = ((80, 120), (120, 80), (64, 64))[index % 3]
                blobs = generator.integers(0, 160, (8, 8, 3), dtype=np.uint8)
                blobs[2:, :, 0 if label == 0 else 2] += 90
                image = Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC)
                _save(image, images / split / name / f"{index}.png", index if split == "test" else 0)


def _save(image: Image.Image, path: Path, index: int) -> None:
    if index == 1:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    elif index == 2:
        alpha = Image.linear_gradient("L").resize(image.size)
        image.putalpha(alpha)
        image.save(path)
    else:
        image.save(path)


def write_checkpoint() -> None:
    """A network that knows every image of both splits: variants are judged on the one, parity on the other."""
    train, test = load_train_split(artifacts.TRAIN_SPLIT), load_test_split(artifacts.TEST_SPLIT)
    manifest = load_manifest(artifacts.MANIFEST)
    crops = np.concatenate([fixed_crops(train, range(len(train)), Transform(RESIZE, CROP, MEAN, STD)), test.pixels])
    images = normalize(torch.from_numpy(crops).permute(0, 3, 1, 2), MEAN, STD, torch.float32)
    model = fitted_model(ARCHITECTURE, images, torch.from_numpy(np.concatenate([train.labels, test.labels])))
    facts = Facts(ARCHITECTURE, CLASSES, Transform(RESIZE, CROP, MEAN, STD), "finetune", 0, None, manifest.digest)
    save_checkpoint(artifacts.train_dir("finetune") / "checkpoint.safetensors", model, facts)
    rows, logits = np.empty(0, np.int64), np.empty((0, len(CLASSES)), np.float32)
    save_validation(artifacts.train_dir("finetune") / "validation.npz", Validation(rows, rows, logits))


def fitted_model(architecture: str, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Random features with batch statistics of `images`, and the last linear layer solved for `labels` by ridge regression."""
    torch.manual_seed(0)
    model = build_model(architecture, len(CLASSES), images.shape[-1])
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain average
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    features: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    with torch.no_grad():
        model.train()(images)
        model.eval()(images)
        hook.remove()
        x, y = features[-1].double(), nn.functional.one_hot(labels, len(CLASSES)).double() * 4 - 2
        head.weight.copy_((x.T @ torch.linalg.solve(x @ x.T + 100 * torch.eye(len(x)), y)).T)
        head.bias.zero_()
    return model
