"""The preprocess stage: source images in, a training-ready split out.

Every image is decoded once, checked and stored: decoded, training images on canvases and test images as the model is fed, or encoded.
A manifest lists each training row's file, label and content digest, files.json the test rows' files; a report says what was skipped, turned, doubled or scaled.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.preprocess.find import find_images
from stages.preprocess.fixes import apply_fixes, free_moved, labels_before_fixes, read_fixes
from stages.preprocess.labels import read_labels
from stages.preprocess.report import build_report, check_usable
from stages.preprocess.shards import QUALITY
from stages.preprocess.split import split_images
from stages.preprocess.store import Image, stage_images, write_split
from stages.shared.artifacts import CACHE, MANIFEST, PREPROCESS_REPORT, SOURCE_DATASET, TEST_SPLIT, TRAIN_SPLIT
from stages.shared.cli import run
from stages.shared.dataset import (
    Entry,
    Manifest,
    TestFile,
    save_cut,
    save_labels_before_fixes,
    save_manifest,
    save_test_files,
)
from stages.shared.files import path_in_errors, write_json
from stages.shared.params import Preprocess, load_params
from stages.shared.source_images import source_images
from stages.shared.transforms import Transform


def main() -> None:
    params = load_params()
    settings = params.preprocess
    transform, max_side = Transform(settings.resize, settings.crop, settings.mean, settings.std), settings.max_side

    unpacked = source_images(SOURCE_DATASET, CACHE / "preprocess")
    with unpacked as images_dir, staging_folder(TRAIN_SPLIT.parent / ".staging") as staging:
        labels = params.dataset.labels
        layout = read_labels(images_dir, labels) if labels else find_images(images_dir)
        fixes = read_fixes(Path(params.dataset.fixes), layout.class_names)
        sources = free_moved(layout.sources, fixes)
        sizes = {"resize": transform.resize, "crop": transform.crop, "max_side": max_side}
        staged = stage_images(sources, staging, **sizes, max_bytes=max_pixel_bytes(settings))
        images, fixed = apply_fixes(staged.images, fixes, layout.sources, layout.class_names)
        check_usable(layout, images, staged.skipped)
        split = split_images(images, layout.class_names, test_fraction=params.dataset.test_fraction)
        side = max(max(image.size) for image in split.train)
        write_split(staged, "train", split.train, side, staging / "train")
        write_split(staged, "test", split.test, transform.crop, staging / "test")
        if staged.encoded:
            save_cut(staging / "test", transform)
        save_test_files(staging / "test", [TestFile(image.source.path, image.sha256) for image in split.test])
        save_labels_before_fixes(staging / "test", labels_before_fixes(split.test, layout.sources))
        publish(staging / "train", TRAIN_SPLIT)
        publish(staging / "test", TEST_SPLIT)

    save_manifest(MANIFEST, build_manifest(split.train, layout.class_names, transform, max_side, side, staged.encoded))
    report = build_report(layout, staged.skipped, split, side) | {"fixes": fixed}
    if staged.encoded:
        report["encoded"] = {"as_they_came": sum(image.kept for image in split.train), "jpeg_quality": QUALITY}
    write_json(PREPROCESS_REPORT, report)
    print(summarize(report), flush=True)


def max_pixel_bytes(settings: Preprocess) -> float:
    """The size of the training images beyond which all are stored encoded."""
    return {"pixels": math.inf, "encoded": 0, "auto": settings.pixels_limit_gb * 1e9}[settings.store]


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """A fresh folder, removed at the end; what a killed run left in it goes first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        with path_in_errors(path):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Flush a finished split to disk and rename it to its place, instead of the one that may be there."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)


def build_manifest(
    train: Sequence[Image],
    class_names: tuple[str, ...],
    transform: Transform,
    max_side: int,
    side: int,
    encoded: bool,
) -> Manifest:
    """The training split's manifest. Its digest covers what a model is fed, row by row, and not what the files are called."""
    entries = tuple(Entry(image.source.path, image.source.label, image.sha256) for image in train)
    fed = [(entry.label, entry.sha256) for entry in entries]
    sizes = {"resize": transform.resize, "crop": transform.crop, "max_side": max_side}
    sizes |= {"jpeg_quality": QUALITY} if encoded else {}
    digest = hashlib.sha256(json.dumps([class_names, side, sizes, fed]).encode()).hexdigest()
    return Manifest(class_names, digest, transform, max_side, side, entries)


def summarize(report: dict[str, Any]) -> str:
    """For the log: how many images, and how many need a look at the report."""
    skipped = sum(report["skipped"].values())
    doubled = report["duplicates"]
    form = "encoded, up to {} px" if "encoded" in report else "on {} px canvases"
    line = (
        f"train {report['train']['images']} images {form.format(report['canvas_side'])}, test {report['test']['images']}; "
        f"{skipped} files skipped, {doubled['removed_from_train']} training copies of test images removed, "
        f"{doubled['conflicting_labels']} images under more than one class: names in {PREPROCESS_REPORT}"
    )
    fixed = report["fixes"]
    taken = [f"{fixed[action]} {action}" for action in ("drop", "relabel", "move") if fixed[action]]
    if taken or fixed["not_found"]:
        found = f"{len(fixed['not_found'])} entries found no such image"
        line += f"\nfix list: {', '.join(taken) or 'nothing'}, {fixed['of_test_images']} of them test images; {found}"
    return "\n".join([*report["remarks"], line])


if __name__ == "__main__":
    run(main)
