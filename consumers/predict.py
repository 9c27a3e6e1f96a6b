#!/usr/bin/env python3
"""Classify images with an exported model. Needs onnxruntime, numpy and pillow; no other file than this and the model.

    python consumers/predict.py photo.jpg more-photos/        # one line an image
    curl -s localhost/photo.jpg | python consumers/predict.py - --json
    python consumers/predict.py @photos.txt                   # a file that names one image a line

Images are read as the model was taught to see them: EXIF orientation applied, transparency laid on white, 16-bit values
divided by 256, the first frame of an animation. Size does not matter; the model resizes by itself.

Exit codes: 0 every image was classified, 1 some were not (each is named on stderr, the others are still classified),
2 the command line or the model is unusable.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
MAX_PIXELS = 2**26
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXACT = {"cpu": {}, "cuda": {"use_tf32": "0"}}  # TF32 would move probabilities by more than a resize does
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ModelError(Exception):
    """The model cannot be used; ends the program with exit code 2."""


class ImageError(Exception):
    """One image cannot be used; the others go on."""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    warnings.filterwarnings("ignore", module="PIL")  # what they tell of a file is not by its name
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        session, class_names = load_model(options.model, options.provider)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = found = 0
    for names, results in classify(session, find_images(options.images), options.batch_size):
        for name, result in zip(names, results, strict=True):
            found += 1
            if isinstance(result, ImageError):
                failed += 1
                print(f"error: {name}: {result}", file=sys.stderr, flush=True)
            else:
                print(describe(name, result, class_names, options.top_k, options.json), flush=True)
    if not found:
        print(
            f"error: no image in {', '.join(options.images)} (looked for {' '.join(sorted(SUFFIXES))})", file=sys.stderr
        )
        return 1
    return 1 if failed else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    def count(text: str) -> int:
        if not text.isdigit() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
        return int(text)

    default = Path(__file__).resolve().parent.parent / "artifacts" / "model.onnx"
    parser = argparse.ArgumentParser(description="Classify images with an exported model.", fromfile_prefix_chars="@")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a file, a folder (searched deeply), - for stdin, or @list"
    )
    parser.add_argument("--model", type=Path, default=default, help="the ONNX file (default: artifacts/model.onnx)")
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu", help="what computes; never falls back")
    parser.add_argument("--batch-size", type=count, default=16, help="images of one size that are run together")
    parser.add_argument("--top-k", type=count, default=1, help="classes to name, most probable first")
    parser.add_argument("--json", action="store_true", help="one JSON object an image, with every class")
    return parser.parse_args(arguments)


# the model


def load_model(path: Path, provider: str) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """The session and the class names in the order of its output."""
    if not path.is_file():
        raise ModelError(f"{path}: no such model; name one with --model, or make it with `make demo`")
    session = open_session(path, provider)
    metadata = session.get_modelmeta().custom_metadata_map
    try:
        class_names = json.loads(metadata["class_names"])
    except (KeyError, json.JSONDecodeError):
        raise ModelError(f"{path}: no class names in its metadata; it was not exported by this pipeline") from None
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4:
        found = ", ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs)
        raise ModelError(f"{path}: takes {found}, expected one uint8 [batch, height, width, 3 or 4]; use model.onnx")
    num_outputs = session.get_outputs()[0].shape[-1]
    if num_outputs != len(class_names):
        raise ModelError(f"{path}: {len(class_names)} class names for {num_outputs} outputs; export it again")
    return session, class_names


def open_session(path: Path, provider: str) -> onnxruntime.InferenceSession:
    """A session that runs on `provider` alone, of a file that stands alone: where it wants others, there are none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.enable_mem_pattern = False  # images of all sizes: a plan for the last one's only takes memory twice
    if provider == "cuda":
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it could not find; stdout is for answers
                onnxruntime.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=[(PROVIDERS[provider], EXACT[provider])], enable_fallback=False
        )
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = " ".join(str(error).split())
        if "external" in reason.lower():
            reason = f"it keeps tensors in other files, only self-contained models are accepted ({reason:.200})"
        hint = "; no usable CUDA device or library, try --provider cpu" if provider == "cuda" else ""
        raise ModelError(f"{path}: cannot be loaded: {reason:.400}{hint}") from None
    session.disable_fallback()
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise ModelError(f"{PROVIDERS[provider]} is not available here (no CUDA device or library); try --provider cpu")
    return session


def classify(
    session: onnxruntime.InferenceSession, images: Iterator[tuple[str, Path | None]], batch_size: int
) -> Iterator[tuple[list[str], list[Any]]]:
    """Batches of names and results, in the order of `images`; a result is probabilities (classes,) or an ImageError.

    Consecutive images of one size share a batch, while it is no larger than the largest image.
    """
    names: list[str] = []
    batch: list[np.ndarray] = []
    for name, path in images:
        try:
            pixels = read_image(path)
        except ImageError as error:
            if batch:
                yield names, run(session, batch)
            names, batch = [], []
            yield [name], [error]
            continue
        most = max(1, min(batch_size, 3 * MAX_PIXELS // pixels.size))
        if batch and (len(batch) >= most or batch[0].shape != pixels.shape):
            yield names, run(session, batch)
            names, batch = [], []
        names.append(name)
        batch.append(pixels)
    if batch:
        yield names, run(session, batch)


def run(session: onnxruntime.InferenceSession, batch: list[np.ndarray]) -> list[Any]:
    try:
        (probabilities,) = session.run(None, {session.get_inputs()[0].name: np.stack(batch)})
    except Exception as error:
        return [ImageError(f"the model failed on it: {' '.join(str(error).split()):.200}")] * len(batch)
    return list(probabilities)


def describe(name: str, probabilities: np.ndarray, class_names: list[str], top_k: int, as_json: bool) -> str:
    order = np.argsort(-probabilities, kind="stable")
    if as_json:
        ranked = {class_names[index]: float(probabilities[index]) for index in order}
        return json.dumps({"image": name, "class": class_names[order[0]], "probabilities": ranked}, ensure_ascii=False)
    named = "  ".join(f"{class_names[index]} {probabilities[index]:.4f}" for index in order[:top_k])
    return f"{name}: {named}"


# the images


def find_images(arguments: list[str]) -> Iterator[tuple[str, Path | None]]:
    """Names and paths (None is stdin) in a stable order; in folders, files with an image's suffix."""
    for argument in arguments:
        if argument == "-":
            yield "-", None
        elif Path(argument).is_dir():
            files = sorted(
                path for path in Path(argument).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
            )
            yield from ((str(path), path) for path in files)
        else:
            yield argument, Path(argument)


def read_image(path: Path | None) -> np.ndarray:
    """uint8 (height, width, 3), upright. Raises ImageError saying why not."""
    try:
        file = io.BytesIO(sys.stdin.buffer.read()) if path is None else path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a null character in it
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', error)}") from None
    try:
        with file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels; scale it down")
            image.load()
            method = UPRIGHT.get(orientation(image))
            return to_rgb(image if method is None else image.transpose(method))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"is no image in {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        raise ImageError(f"cannot be decoded: {str(error) or type(error).__name__:.200}") from None


def orientation(image: Image.Image) -> int:
    """EXIF's 1 to 8; broken metadata around sound pixels counts as upright, as in browsers."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return gray(np.asarray(image).clip(0, 65535) >> 8)
    if image.mode == "F":  # no agreed range: within 0..1 fractions, else 0..255
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ImageError("holds values that are not finite")
        fractions = values.min() >= 0 and values.max() <= 1
        return gray(np.rint(values.clip(0, 255) * (255 if fractions else 1)))
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return np.asarray(converted)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def gray(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


if __name__ == "__main__":
    sys.exit(main())
