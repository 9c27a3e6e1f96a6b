"""consumers/predict.py: what it accepts, what it says, and that it sees images as the pipeline does."""

import ast
import errno
import io
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from consumers import predict
from stages.shared.decode import UnusableError, decode
from tests.exported_project import ROOT, exported_project
from tests.test_decode_fuzz import hostile_files

PROGRAM = ROOT / "consumers" / "predict.py"


@pytest.fixture
def model() -> str:
    return str(exported_project() / "artifacts" / "model.onnx")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def answers(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, float]]:
    assert predict.main([*words, "--json"]) == 0
    return [json.loads(line)["probabilities"] for line in capsys.readouterr().out.splitlines()]


def test_program_reads_stdin_and_answers_in_json(model: str, photo: Path) -> None:
    words = [sys.executable, str(PROGRAM), "-", "--json", "--model", model]
    done = subprocess.run(words, input=photo.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["image"] == "-"
    assert answer["class"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_program_is_one_file_that_needs_neither_torch_nor_the_pipeline() -> None:
    nodes = list(ast.walk(ast.parse(PROGRAM.read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert others == {"numpy", "onnxruntime", "PIL"}


def test_folder_is_searched_deeply_and_in_order(
    model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "a.PNG", "deep/c.png"):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "notes.txt").write_text("no image")
    assert predict.main([str(folder), "--model", model]) == 0
    names = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [str(folder / name) for name in ("a.PNG", "b.png", "deep/c.png")]


def test_top_k_names_the_most_probable_first(model: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.main([str(photo), "--model", model, "--top-k", "2"])
    words = capsys.readouterr().out.split(": ")[1].split()
    assert set(words[::2]) == {"hotdog", "not-hotdog"}
    assert float(words[1]) >= float(words[3])


def test_batching_changes_neither_answers_nor_order(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    images = str(exported_project() / "artifacts/download/dataset/images/test")
    single = answers(capsys, images, "--model", model, "--batch-size", "1")
    several = answers(capsys, images, "--model", model, "--batch-size", "5")
    assert len(single) == 12
    for one, other in zip(single, several, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_list_of_images_in_a_file(model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text(f"{photo}\n{photo}\n")
    assert len(answers(capsys, f"@{tmp_path / 'list.txt'}", "--model", model)) == 2


def test_rotated_photo_gets_the_upright_ones_answer(
    model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    with Image.open(photo) as upright:
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    first, second = answers(capsys, str(photo), str(tmp_path / "turned.png"), "--model", model)
    assert first == second


def write_variants(folder: Path) -> list[Path]:
    """One picture in the modes and formats that need a rule."""
    generator = np.random.default_rng(3)
    rgb = Image.fromarray(generator.integers(0, 256, (30, 20, 3), dtype=np.uint8))
    alpha = Image.fromarray(generator.integers(0, 256, (30, 20), dtype=np.uint8))
    transparent = rgb.copy()
    transparent.putalpha(alpha)
    palette = rgb.quantize(16)
    palette.info["transparency"] = 3
    deep = Image.fromarray(generator.integers(0, 65536, (30, 20), dtype=np.uint16))
    fractions = Image.fromarray(generator.random((30, 20), dtype=np.float32))
    images = {
        "rgb.png": rgb,
        "rgba.png": transparent,
        "la.png": transparent.convert("LA"),
        "palette.png": palette,
        "bits.png": rgb.convert("1"),
        "deep.png": deep,
        "deep.tiff": deep,
        "fractions.tiff": fractions,
        "cmyk.jpg": rgb.convert("CMYK"),
        "lab.tiff": rgb.convert("RGB").convert("L"),
        "ycc.jpg": rgb,
    }
    for name, image in images.items():
        image.save(folder / name)
    rgb.save(folder / "frames.gif", save_all=True, append_images=[Image.new("RGB", rgb.size)])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rgb.save(folder / f"turned{orientation}.jpg", exif=exif)
        rgb.save(folder / f"turned{orientation}.tiff", exif=exif)
    return sorted(folder.iterdir())


def test_every_mode_and_orientation_is_read_as_in_training(tmp_path: Path) -> None:
    paths = write_variants(tmp_path)
    assert len(paths) == 28
    for path in paths:
        np.testing.assert_array_equal(predict.read_image(path), decode(path).pixels, err_msg=path.name)


def test_bad_images_are_named_and_the_others_classified(
    model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("no image at all")
    words = [str(tmp_path / name) for name in ("cut.png", "photo.png", "text.jpg", "missing.png")]
    assert predict.main([*words, "--model", model]) == 1
    output = capsys.readouterr()
    assert output.out.startswith(f"{photo}: ")
    assert len(output.out.splitlines()) == 1
    for name, reason in (
        ("cut.png", "cannot be decoded"),
        ("text.jpg", "is no image in"),
        ("missing.png", "cannot be read"),
    ):
        assert f"error: {tmp_path / name}: {reason}" in output.err


def test_too_many_pixels_are_refused_before_decoding(
    model: str, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "MAX_PIXELS", 100)
    assert predict.main([str(photo), "--model", model]) == 1
    assert "60x40 is more than 100 pixels" in capsys.readouterr().err


def test_empty_folder_is_an_error(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(tmp_path), "--model", model]) == 1
    assert "no image in" in capsys.readouterr().err


def test_missing_and_unfit_models_are_refused(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    export = exported_project() / "artifacts" / "export"
    for path, reason in (
        (tmp_path / "none.onnx", "no such model"),
        (tmp_path / "text.onnx", "cannot be loaded"),
        (export / "core.onnx", "expected one uint8"),
        (export / "model.crops.onnx", "takes crops of [64, 64]"),
    ):
        assert predict.main([str(photo), "--model", str(path)]) == 2
        assert f"error: {path}: {reason}" in " ".join(capsys.readouterr().err.split())[: len(str(path)) + 200].replace(
            "takes normalized: tensor(float) ['batch', 3, 64, 64], ", ""
        )


def test_a_model_that_cannot_be_read_is_exit_code_2(
    model: str, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert predict.main([str(photo), "--model", model]) == 2
    assert f"error: {model}: the model cannot be read: Input/output error" in capsys.readouterr().err


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin"])
def test_model_with_tensors_in_other_files_is_refused(
    model: str, photo: Path, tmp_path: Path, location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(onnx.load(model), folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        (folder / "weights.bin").rename(tmp_path / "weights.bin")
        (folder / "m.onnx").write_bytes(move_outside(folder / "m.onnx", location))
    assert predict.main([str(photo), "--model", str(folder / "m.onnx")]) == 2
    assert "only self-contained models are accepted" in capsys.readouterr().err


def move_outside(path: Path, location: str) -> bytes:
    external = onnx.load(path, load_external_data=False)
    for tensor in external.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return external.SerializeToString()


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there may be a CUDA device here")
def test_cuda_is_never_replaced_by_the_cpu(model: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(photo), "--model", model, "--provider", "cuda"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "try --provider cpu" in output.err


@pytest.mark.parametrize("words", [[], ["x.png", "--batch-size", "0"], ["x.png", "--provider", "tpu"]])
def test_wrong_command_line_is_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        predict.main(words)
    assert end.value.code == 2


def test_image_arrives_from_stdin_once(model: str, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    np.testing.assert_array_equal(predict.read_image(None), decode(photo).pixels)


# Runs the program of sys.argv under a limit on its address space, and says last how much memory it really took.
CONFINED = """
import re, resource, runpy, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    print(f"peak {int(peak) // 1024} MB", file=sys.stderr)
"""
LARGEST_IMAGE = 1500  # megabytes that the model and an image of MAX_PIXELS take


def confined(*words: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """predict.py in a process of its own, and its peak in megabytes."""
    command = [sys.executable, "-c", CONFINED, str(PROGRAM), *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, check=False)
    assert done.stderr.splitlines()[-1].startswith("peak "), done.stderr[-2000:]
    return done, int(done.stderr.split()[-2])


def is_accepted(path: Path) -> bool:
    try:
        decode(path)
    except UnusableError:
        return False
    return True


@pytest.mark.parametrize(
    ("seed", "first", "last"),
    [(0, 100, 220), *(pytest.param(seed, 0, 1500, marks=pytest.mark.slow) for seed in (1, 2))],
)
def test_each_hostile_image_is_answered_or_named_as_the_pipeline_takes_or_refuses_it(
    model: str, tmp_path: Path, seed: int, first: int, last: int
) -> None:
    paths = []
    for name, content in itertools.islice(hostile_files(last, seed), first, last):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    (tmp_path / "list").write_text("\n".join(map(str, paths)))
    done, peak = confined(f"@{tmp_path / 'list'}", "--json", "--model", model)
    assert done.returncode == 1  # some could not be read, and it did not crash

    answers = {line["image"]: line["probabilities"] for line in map(json.loads, done.stdout.splitlines())}
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]  # libtiff writes there as well
    named = Counter(next(str(path) for path in paths if line.startswith(f"error: {path}: ")) for line in errors)
    print(f"{len(answers)} answered, {len(named)} named, peak {peak} MB")
    assert len(answers) == len(done.stdout.splitlines())
    assert set(named.values()) == {1}
    assert sorted([*answers, *named]) == sorted(map(str, paths))
    assert set(answers) == {str(path) for path in paths if is_accepted(path)}
    assert len(answers) > len(paths) // 10  # not all are hopeless: they reach the decoders and the model
    assert all(sum(row.values()) == pytest.approx(1, abs=1e-5) for row in answers.values())
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert peak < LARGEST_IMAGE


def test_images_of_one_size_share_a_batch_only_while_it_is_no_larger_than_one_may_be(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(predict, "run", lambda _, batch: [sizes.append(len(batch))] * len(batch))
    model = predict.Model(None, [])  # resizes by itself: images come at full size
    images = [("photo", photo)] * 7
    assert len(list(predict.classify(model, iter(images), 5))) == 7
    assert sizes == [5, 2]
    sizes.clear()
    monkeypatch.setattr(predict, "MAX_PIXELS", 60 * 40 * 3)
    assert len(list(predict.classify(model, iter(images), 5))) == 7
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize(
    "start", [b"", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"RIFF\xff\xff\xff\x7fWEBP", b"P6 9 9 255 "]
)
def test_file_of_20_gigabytes_is_not_read_into_memory(model: str, tmp_path: Path, start: bytes) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.write(start)
        file.truncate(20 * 2**30)  # takes no room on the disk
    done, peak = confined(str(huge), "--model", model)
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if start.startswith(b"P6") else 1)
    assert (f"error: {huge}: " in done.stderr) == (done.returncode == 1)
    assert peak < 1000


def test_file_whose_name_is_no_text_is_classified_and_named(model: str, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff\n.png")).write_bytes(photo.read_bytes())
    (folder / os.fsdecode(b"\xfe.png")).write_bytes(b"no image")
    environment = {**os.environ, "PYTHONUTF8": "1"}
    command = [sys.executable, str(PROGRAM), str(folder), "--model", model]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["image"] == str(folder / os.fsdecode(b"\xff\n.png"))
    assert f"error: {folder}/\\udcfe.png: is no image in" in done.stderr


def test_name_with_a_null_character_is_an_error_of_that_image_alone(
    model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text(f"a\0b.png\n{photo}\n")
    assert predict.main([f"@{tmp_path / 'list.txt'}", "--model", model]) == 1
    output = capsys.readouterr()
    assert output.out.startswith(f"{photo}: ")
    assert "a\\x00b.png: cannot be read: embedded null byte" in output.err
