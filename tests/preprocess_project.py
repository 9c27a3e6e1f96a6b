"""A small project folder for the preprocess stage: drawn images in class folders, and what the stage made of them."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from stages.shared.artifacts import MANIFEST, PREPROCESS_REPORT, SOURCE_DATASET

PROJECT = Path(__file__).parent.parent
PHOTOS = PROJECT.parent / "shared" / "real" / "hotdog-small.zip"
IMAGES = SOURCE_DATASET / "images"
RESIZE, CROP, MAX_SIDE = 40, 32, 48


def enter_project(tmp_path, monkeypatch):
    """Make an empty project folder with small sizes in its params.yaml the working folder."""
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    for key, value in (("resize: 256", RESIZE), ("crop: 224", CROP), ("max_side: 512", MAX_SIDE)):
        assert text.count(key) == 1
        text = text.replace(key, f"{key.split(':')[0]}: {value}")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    shutil.copy(PROJECT / "fixes.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    IMAGES.mkdir(parents=True)
    return tmp_path


def noise(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(
        1, 256, (height, width, 3), dtype=np.uint8
    )  # no zeros, as on the canvas


def draw(path, pixels, **options):
    path = IMAGES / path
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def draw_splits(train=3, test=2):
    """hot/ and not/ in train/ and test/, every image with a content of its own."""
    for number, name in enumerate(("hot", "not")):
        for split, count in (("train", train), ("test", test)):
            for i in range(count):
                draw(f"{split}/{name}/{i}.png", noise([number, split == "test", i], 20 + i, 30))


def report():
    return json.loads(PREPROCESS_REPORT.read_text(encoding="utf-8"))


def outputs():
    return {
        path.relative_to(MANIFEST.parent): path.read_bytes() for path in MANIFEST.parent.rglob("*") if path.is_file()
    }
