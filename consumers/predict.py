#!/usr/bin/env python3
"""Classify images with an exported model. Needs onnxruntime, numpy and pillow; no other file than this and the model.

    python consumers/predict.py photo.jpg more-photos/        # one line an image
    curl -s localhost/photo.jpg | python consumers/predict.py - --json
    python consumers/predict.py @photos.txt                   # a file that names one image a line
    python consumers/predict.py photos/ --output answers.csv  # or .jsonl, .parquet; needs predict_table.py beside this
    python consumers/predict.py --rank photos/                # the unsure ones first; needs predict_rank.py beside this

Images are read as the model was taught to see them: EXIF orientation applied, transparency laid on white, 16-bit values
by their high byte, the first frame of an animation. Size does not matter: a model that names its resize in its metadata gets
the images resized by Pillow, which is what the training pipeline's resize equals; any other resizes by itself.

Where the model carries thresholds, an answer may be "not sure" or "unlike anything it was taught"; --always answers.

Exit codes: 0 every image was classified, 1 some were not (each is named on stderr, the others are still classified),
2 the command line or the model is unusable.
"""

import argparse
import contextlib
import functools
import importlib
import io
import itertools
import json
import os
import signal
import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on it reports models and machines to its maker
if __name__ == "__main__":  # Ctrl-C and `| head` end it as they end any program, not with a traceback
    for ending in {"SIGINT", "SIGPIPE"} & set(dir(signal)):  # Windows has no SIGPIPE
        signal.signal(getattr(signal, ending), signal.SIG_DFL)

import numpy as np
import onnxruntime
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError, features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # and AVIF and HEIF, where this machine reads them
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
SUFFIXES |= {".avif", ".heic", ".heif", ".hif"}
MAX_PIXELS = 2**26
MAX_STDIN = 2**30  # bytes; an image of MAX_PIXELS has no more
LARGE = 2**24  # pixels; images above are decoded one at a time, so that memory does not grow with the cores
NAMED_SKIPS = 20
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
OPTIONS = {
    "cpu": {},
    # TF32 would move probabilities by more than a resize does; an exhaustive search comes again with every batch size.
    "cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ONE_LARGE = threading.Lock()
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
AT_ONCE = min(CORES, 4)  # batches that run beside each other: each has its own memory, some 90 MB for a ResNet-18


class UsageError(Exception):
    """The model or the command line cannot be used; ends the program with exit code 2."""


class ImageError(Exception):
    """One image cannot be used; the others go on."""


class SkippedError(ImageError):
    """A file in a folder that no picture's name has: named, and no failure."""


@dataclass(frozen=True)
class Model:
    session: onnxruntime.InferenceSession
    class_names: list[str]  # in the order of the output
    side: int | None = None  # pixels; both sides that its own transform resizes to, None where the file does not say
    at_once: int = 1  # batches that may run beside each other; one of full-size images, and one on a GPU
    outputs: tuple[str, ...] = ("probabilities",)  # and `familiarity`, where the file has it
    min_familiarity: float = 0  # below: unlike anything it was taught
    min_probability: dict[str, float] = field(default_factory=dict)  # by class; below: not sure


@dataclass(frozen=True)
class Answer:
    probabilities: np.ndarray  # (classes,) float32
    familiarity: float | None = None  # share of training images that look less familiar; None: the model does not say
    features: np.ndarray | None = None  # (dimensions,) float32, only for --rank


Source = Path | ImageError | None  # None is stdin
Result = Answer | ImageError
Decoded = np.ndarray | ImageError
Write = Callable[[str, Result], None]  # takes each name and result
Key = TypeVar("Key")
Given = TypeVar("Given")
Made = TypeVar("Made")


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    prepare_streams()
    try:
        if sys.stdout is None and not options.output:
            raise UsageError("stdout is closed; answers go there, or into --output FILE")
        at_once = batches_at_once(options)
        model = load_model(options.model, options.provider, with_features=options.rank, at_once=at_once)
        with open_writer(model, options) as (write, done):
            images = ((name, source) for name, source in find_images(options.images) if printable(name) not in done)
            tally: Counter[str] = Counter()
            for name, result in classify(model, images, options.batch_size):
                report(name, result, tally)
                write(name, result)
        return conclude(tally, options.images, len(done))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of an image it would be an ImageError
        print(f"error: the answers cannot be written: {error.strerror}", file=sys.stderr)
        return 1


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    default = Path(__file__).resolve().parent.parent / "artifacts" / "model.onnx"
    parser = argparse.ArgumentParser(description="Classify images with an exported model.")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a file, a folder (searched deeply), - for stdin, or @list")
    add("--model", type=Path, default=default, help="the ONNX file (default: artifacts/model.onnx)")
    add("--provider", choices=PROVIDERS, default="cpu", help="what computes; never falls back")
    add("--batch-size", type=count, default=16, help="images that are run together (default: 16)")
    add("--top-k", type=count, default=1, help="classes to name, most probable first")
    add("--json", action="store_true", help="one JSON object an image, with every class")
    add("--always", action="store_true", help="answer where the model's thresholds say that it is not sure, too")
    add("--output", type=Path, metavar="FILE", help="write a table as it goes: .csv, .jsonl or .parquet")
    add("--resume", action="store_true", help="go on with --output's file: skip the images that it answers")
    add(
        "--rank",
        action="store_true",
        help="name the images the model is least sure of first, unlike ones before like ones",
    )
    options = parser.parse_args(arguments)
    if options.resume and not options.output:
        parser.error("--resume goes with --output FILE")
    if options.rank and options.output:
        parser.error("--rank prints; redirect it instead of --output")
    return options


def batches_at_once(options: argparse.Namespace) -> int:
    """One on all cores where no more than one batch is named, else AT_ONCE that share them."""
    names = options.images
    more = any(name.startswith("@") or is_folder(name) for name in names)
    return AT_ONCE if more or len(names) > options.batch_size else 1


def own_stderr() -> None:
    """Keep stderr to this program: libtiff and CUDA's libraries write raw lines into the middle of ours."""
    if sys.stderr is not None:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def prepare_streams() -> None:
    """Keep `print` and Pillow from surprising: closed streams, names that are no text, remarks on files unnamed."""
    warnings.filterwarnings("ignore", module="PIL")
    if sys.stderr is None:  # print would take stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


# the answers


@contextlib.contextmanager
def open_writer(model: Model, options: argparse.Namespace) -> Iterator[tuple[Write, set[str]]]:
    """The writer, and the names that --resume finds done."""

    def to_stdout(name: str, result: Result) -> None:
        if isinstance(result, Answer):
            print(describe(model, name, result, options), flush=True)

    if options.output:
        with open_table(model, options) as opened:
            yield opened
    elif options.rank:
        with ranked(to_stdout) as keep:
            yield keep, set()
    else:
        yield to_stdout, set()


@contextlib.contextmanager
def open_table(model: Model, options: argparse.Namespace) -> Iterator[tuple[Write, set[str]]]:
    table = beside("predict_table")
    try:
        total = count_images(options.images) if sys.stderr.isatty() else None
        with table.open_table(options.output, model.class_names, options.resume, total) as (add, done):

            def to_table(name: str, result: Result) -> None:
                if isinstance(result, Answer):
                    add(printable(name), record(model, result, options.always))
                elif not isinstance(result, SkippedError):
                    add(printable(name), {"error": str(result)})

            yield to_table, done
    except table.TableError as error:
        raise UsageError(str(error)) from None


@contextlib.contextmanager
def ranked(write: Write) -> Iterator[Write]:
    """Keeps the answers, and writes them at last: first what is worth the most to label."""
    ranking = beside("predict_rank")
    kept: list[tuple[str, Answer]] = []
    yield lambda name, result: kept.append((name, result)) if isinstance(result, Answer) else None
    answers = [answer for _, answer in kept]
    for index in ranking.order([a.probabilities for a in answers], [a.features for a in answers]):
        write(*kept[index])


def beside(name: str) -> Any:
    """The module beside this file: only some options need one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UsageError(f"this option needs {name}.py beside {Path(__file__).name}; copy it there") from None


def decide(model: Model, answer: Answer) -> str:
    """`answered`, `unsure` or `unfamiliar`, by the thresholds in the model's file."""
    best = int(answer.probabilities.argmax())
    if answer.familiarity is not None and answer.familiarity < model.min_familiarity:
        return "unfamiliar"
    sure = answer.probabilities[best] >= model.min_probability.get(model.class_names[best], 0)
    return "answered" if sure else "unsure"


def record(model: Model, answer: Answer, always: bool = False) -> dict[str, Any]:
    """All that is known of one image; `class` is the most probable one, whatever `decision` says."""
    order = np.argsort(-answer.probabilities, kind="stable")
    return {
        "class": model.class_names[order[0]],
        "decision": "answered" if always else decide(model, answer),
        **({} if answer.familiarity is None else {"familiarity": answer.familiarity}),
        "probabilities": {model.class_names[index]: float(answer.probabilities[index]) for index in order},
    }


def describe(model: Model, name: str, answer: Answer, options: argparse.Namespace) -> str:
    """One line."""
    known = record(model, answer, options.always)
    if options.json:
        return json.dumps({"image": name, **known}, ensure_ascii=False)
    ranked = itertools.islice(known["probabilities"].items(), options.top_k)
    named = "  ".join(f"{label} {probability:.4f}" for label, probability in ranked)
    saying = {"answered": "{}", "unsure": "not sure ({})", "unfamiliar": "unlike anything it was taught ({})"}
    return f"{printable(name)}: {saying[known['decision']].format(named)}"


def report(name: str, result: Result, tally: Counter[str]) -> None:
    """Count a result, and name on stderr what has no answer."""
    kind = "classified" if isinstance(result, Answer) else "skipped" if isinstance(result, SkippedError) else "failed"
    tally[kind] += 1
    if kind == "failed":
        print(f"error: {printable(name)}: {result}", file=sys.stderr, flush=True)
    elif kind == "skipped" and tally[kind] <= NAMED_SKIPS:
        print(f"skipped: {printable(name)}: {result}", file=sys.stderr, flush=True)


def conclude(tally: Counter[str], arguments: list[str], num_done: int) -> int:
    """The last word on stderr, where there is more to say than answers. Returns the exit code."""
    if not tally["classified"] + tally["failed"] + num_done:
        where = ", ".join(map(printable, arguments))
        print(f"error: no image in {where} (looked for {' '.join(sorted(SUFFIXES))})", file=sys.stderr)
        return 1
    if tally["failed"] or tally["skipped"] or num_done:
        counts = [f"{tally['classified']:,} classified", f"{tally['failed']:,} failed", f"{tally['skipped']:,} skipped"]
        print(", ".join(counts + [f"{num_done:,} done before"] * bool(num_done)), file=sys.stderr)
    return 1 if tally["failed"] else 0


def printable(name: str) -> str:
    """On one line, and nothing that a terminal would obey."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


# the model


def load_model(path: Path, provider: str, with_features: bool = False, at_once: int = 1) -> Model:
    """A file that keeps to its contract, for `at_once` batches beside each other, each on its share of the cores.

    One at a time where images come at full size, and on a GPU. Raises UsageError saying what is wrong with the file.
    """
    content = read_model(path)
    at_once = at_once if provider == "cpu" else 1
    session = open_session(path, content, provider, CORES // at_once)
    metadata = session.get_modelmeta().custom_metadata_map
    class_names, side, thresholds = read_metadata(path, metadata)
    if side is None and at_once > 1:
        return load_model(path, provider, with_features)
    if with_features and metadata.get("features"):  # the name of a tensor inside
        content = beside("predict_rank").with_output(content, metadata["features"])
        session = open_session(path, content, provider, CORES // at_once)
    check_inputs(path, session, side)
    found = {output.name: output for output in session.get_outputs()}
    probabilities = found.get("probabilities", session.get_outputs()[0])
    if not probabilities.shape or probabilities.shape[-1] != len(class_names):
        raise UsageError(f"{path}: {len(class_names)} class names for outputs {probabilities.shape}; export it again")
    outputs = (probabilities.name, *({"familiarity", metadata.get("features", "")} & set(found)))
    return Model(session, class_names, side, at_once, outputs, *thresholds)


def check_inputs(path: Path, session: onnxruntime.InferenceSession, side: int | None) -> None:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4:
        takes = ", ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs)
        raise UsageError(f"{path}: takes {takes}, expected one uint8 [batch, height, width, 3 or 4]; use model.onnx")
    if side is not None and isinstance(inputs[0].shape[1], int):
        raise UsageError(
            f"{path}: takes crops of {inputs[0].shape[1:3]}, cut by its caller; use model.onnx for pictures"
        )


def read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        made = "`make repro` makes artifacts/model.onnx, `make demo` .demo/artifacts/model.onnx"
        raise UsageError(f"{path}: no such model; name one with --model ({made})") from None
    except OSError as error:
        raise UsageError(f"{path}: the model cannot be read: {error.strerror}") from None


def read_metadata(path: Path, metadata: dict[str, str]) -> tuple[list[str], int | None, tuple[float, dict[str, float]]]:
    """The class names, the side that the model resizes to, and the thresholds; the last two are optional."""
    try:
        class_names = [str(name) for name in json.loads(metadata["class_names"])]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise UsageError(f"{path}: no class names in its metadata; it was not exported by this pipeline") from None
    try:
        side = json.loads(metadata["test_transform"])["resize"] if "test_transform" in metadata else None
        thresholds = json.loads(metadata.get("thresholds", "{}"))
        by_class = {name: float(value) for name, value in thresholds.get("probability", {}).items()}
        return class_names, side and int(side), (float(thresholds.get("familiarity", 0)), by_class)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(f"{path}: its test_transform or thresholds cannot be read; export it again") from None


def open_session(path: Path, content: bytes, provider: str, num_threads: int) -> onnxruntime.InferenceSession:
    """A session that runs on `provider` alone, of a file that stands alone: where it wants others, there are none."""
    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores decode meanwhile
    options.intra_op_num_threads = num_threads
    options.enable_mem_pattern = False  # of no use to images of another size, and it doubles the peak
    if provider == "cuda":
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it could not find; stdout is for answers
                onnxruntime.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(
            content, options, providers=[(PROVIDERS[provider], OPTIONS[provider])], enable_fallback=False
        )
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = " ".join(str(error).split())
        if "external" in reason.lower():
            reason = f"it keeps tensors in other files, only self-contained models are accepted ({reason:.200})"
        hint = "; no usable CUDA device or library, try --provider cpu" if provider == "cuda" else ""
        raise UsageError(f"{path}: cannot be loaded: {reason:.400}{hint}") from None
    session.disable_fallback()
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise UsageError(f"{PROVIDERS[provider]} is not available here (no CUDA device or library); try --provider cpu")
    return session


def classify(model: Model, images: Iterable[tuple[str, Source]], batch_size: int) -> Iterator[tuple[str, Result]]:
    """Names and results in the order of `images`."""
    groups = batches(decoded(images, model.side, batch_size), batch_size)
    for names, results in in_threads(functools.partial(run, model), groups, model.at_once):
        yield from zip(names, results, strict=True)


def batches(images: Iterable[tuple[str, Decoded]], batch_size: int) -> Iterator[tuple[list[str], list[Decoded]]]:
    """Names and images, consecutive ones of one size together.

    Full-size images are batched only while all are no larger than the largest single one may be.
    """
    names: list[str] = []
    batch: list[Decoded] = []
    shape: tuple[int, ...] = ()
    for name, item in images:
        if isinstance(item, np.ndarray):
            most = max(1, min(batch_size, 3 * MAX_PIXELS // item.size))
            if len(batch) >= most or (shape and item.shape != shape):
                yield names, batch
                names, batch = [], []
            shape = item.shape
        names.append(name)
        batch.append(item)
    if names:
        yield names, batch


def run(model: Model, batch: list[Decoded]) -> list[Result]:
    """A result for each: images of one shape through the model at once, errors as they are."""
    answers = iter(infer(model, [item for item in batch if isinstance(item, np.ndarray)]))
    return [next(answers) if isinstance(item, np.ndarray) else item for item in batch]


def infer(model: Model, images: list[np.ndarray]) -> list[Result]:
    """Results of images of one shape, uint8 (height, width, 3). One that the model fails on spares the others."""
    if not images:
        return []
    try:
        outputs = model.session.run(model.outputs, {model.session.get_inputs()[0].name: np.stack(images)})
    except Exception as error:
        if len(images) > 1:
            return [result for image in images for result in infer(model, [image])]
        return [ImageError(f"the model failed on it: {' '.join(str(error).split()):.200}")]
    columns = dict(zip(model.outputs[1:], outputs[1:], strict=True))
    known = columns.pop("familiarity", None)
    familiarity = [None] * len(images) if known is None else known.astype(float).tolist()
    features = next(iter(columns.values()), [None] * len(images))
    return [Answer(*values) for values in zip(outputs[0], familiarity, features, strict=True)]


# the images


def find_images(arguments: list[str]) -> Iterator[tuple[str, Source]]:
    """Names and where to read them, in a stable order; an error in a path's place says why there is none."""
    for argument in arguments:
        if argument.startswith("@"):
            for name in read_list(Path(argument[1:])):
                yield from find_below(name)
        else:
            yield from find_below(argument)


def find_below(name: str) -> Iterator[tuple[str, Source]]:
    """One file, or in a folder all that has a picture's name; what else is there is named as skipped."""
    if not name.strip():
        yield repr(name), ImageError("names no file")
    elif name == "-":
        yield "-", None
    elif not is_folder(name):
        yield name, Path(name)
    else:
        unreadable: list[OSError] = []
        for folder, folders, files in os.walk(name, onerror=unreadable.append):
            folders.sort()
            links = {child for child in folders if Path(folder, child).is_symlink()}
            for child in sorted([*files, *links]):
                path = Path(folder, child)
                yield str(path), inspect_entry(path)
        yield from ((str(error.filename), ImageError(f"cannot be read: {error.strerror}")) for error in unreadable)


def is_folder(name: str) -> bool:
    """False for names that no file can have, too: opening them says why."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def inspect_entry(path: Path) -> Source:
    if path.is_symlink() and not path.exists():
        return ImageError("a link to nothing")
    if path.is_dir():
        return SkippedError("a link to a folder; name the folder itself")
    if path.suffix.lower() not in SUFFIXES:
        return SkippedError("has no picture's name")
    return path if path.is_file() else SkippedError("is no file")


def read_list(path: Path) -> Iterator[str]:
    """The names in a file of one a line; blank lines and a byte order mark are none. Raises UsageError for other files."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(2**16), b"")):
                if number == 0 and (len(line) >= 2**16 or is_picture(line)):
                    raise UsageError(
                        f"@{path}: no list of names, one a line; leave out the @ to classify the file itself"
                    )
                name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).rstrip("\r\n")
                if name.strip():
                    yield name
    except OSError as error:
        raise UsageError(f"@{path}: the list cannot be read: {error.strerror}") from None


def is_picture(start: bytes) -> bool:
    signatures = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
    return start.startswith(signatures) or start[4:8] == b"ftyp"


def count_images(arguments: list[str]) -> int | None:
    """The number there will be, where looking does not use them up."""
    lists = [Path(argument[1:]) for argument in arguments if argument.startswith("@")]
    return sum(1 for _ in find_images(arguments)) if all(path.is_file() for path in lists) else None


def decoded(images: Iterable[tuple[str, Source]], side: int | None, batch_size: int) -> Iterator[tuple[str, Decoded]]:
    """Names and pixels in the order of `images`. Two batches and an image a core ahead at most, or one full-size image."""
    ahead = 2 * batch_size + CORES if side else 2
    return in_threads(functools.partial(try_to_read, side=side), images, ahead)


def in_threads(
    function: Callable[[Given], Made], items: Iterable[tuple[Key, Given]], ahead: int
) -> Iterator[tuple[Key, Made]]:
    """Each key with `function` of its value, in their order: by a thread a core, `ahead` at most of whoever takes them.

    Pillow and ONNX Runtime work without Python's lock.
    """
    pool = ThreadPoolExecutor(CORES)
    waiting: deque[tuple[Key, Future[Made]]] = deque()
    try:
        for key, value in items:
            waiting.append((key, pool.submit(function, value)))
            while waiting and (len(waiting) >= ahead or waiting[0][1].done()):
                key, future = waiting.popleft()
                yield key, future.result()
        while waiting:
            key, future = waiting.popleft()
            yield key, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def try_to_read(source: Source, side: int | None) -> Decoded:
    try:
        return read_image(source, side)
    except ImageError as error:
        return error


def read_image(source: Source, side: int | None = None) -> np.ndarray:
    """uint8 (height, width, 3), upright; resized to `side` x `side`. Raises ImageError saying why not."""
    if isinstance(source, ImageError):
        raise source
    try:
        file: BinaryIO = io.BytesIO(read_stdin()) if source is None else source.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a null character in it
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', error)}") from None
    with file:
        return decode(file, side)


def read_stdin() -> bytes:
    if sys.stdin is None:
        raise ImageError("stdin is closed")
    content: bytes = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(content) > MAX_STDIN:
        raise ImageError(f"stdin is longer than {MAX_STDIN:,} bytes")
    return content


def decode(file: BinaryIO, side: int | None = None) -> np.ndarray:
    """uint8 (height, width, 3), upright, of an open image file; resized to `side` x `side`. Raises ImageError."""
    try:
        with Image.open(file, formats=formats()) as image:
            num_pixels = image.width * image.height
            if num_pixels > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels; scale it down")
            with ONE_LARGE if num_pixels > LARGE else contextlib.nullcontext():
                image.load()
                method = UPRIGHT.get(orientation(image))
                rgb = to_rgb(image if method is None else image.transpose(method))
                return np.asarray(rgb if side is None else resize(rgb, side))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(name_format(file)) from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        raise ImageError(f"cannot be decoded: {printable(str(error) or type(error).__name__):.200}") from None


def resize(image: Image.Image, side: int) -> Image.Image:
    """Width first, then height, each rounded, as in training. In one call Pillow 13 takes the height first where the picture is tall.

    That moves a tenth of its pixels by a level (https://github.com/python-pillow/Pillow/pull/9549).
    """
    across = image.resize((side, image.height), Image.Resampling.BILINEAR)
    return across.resize((side, side), Image.Resampling.BILINEAR)


@functools.cache
def formats() -> tuple[str, ...]:
    """FORMATS, and what phones write: AVIF where this Pillow was built with it, HEIF where pillow-heif is installed."""
    avif = ("AVIF",) if "avif" in features.modules and features.check("avif") else ()
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return (*FORMATS, *avif)
    return (*FORMATS, *avif, "HEIF")


def name_format(file: BinaryIO) -> str:
    """Say what is wrong with a file that no decoder takes for its own."""
    file.seek(0)
    start = file.read(32)
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return "is a HEIC picture; `pip install pillow-heif` to read it"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"):
        return "is an AVIF picture; this Pillow cannot read it, `pip install -U pillow`"
    return f"is no image in {', '.join(formats())}"


def orientation(image: Image.Image) -> int:
    """EXIF's 1 to 8; broken metadata around sound pixels counts as upright, as in browsers."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def to_rgb(image: Image.Image) -> Image.Image:
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
        return converted
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert copies in any case


def gray(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


if __name__ == "__main__":
    own_stderr()
    sys.exit(main())
