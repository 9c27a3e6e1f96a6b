"""predict.py as a program among others: its streams, its lists, what it finds in folders, and when it had better not answer."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from consumers import predict
from stages.shared.transforms import resize_center_crop
from tests.exported_project import ROOT
from tests.tiny_model import CLASSES, write_tiny_model

PROGRAM = [sys.executable, str(ROOT / "consumers" / "predict.py")]
RED, GREEN, GRAY = (250, 5, 5), (5, 250, 5), (120, 120, 120)


@pytest.fixture
def model(tmp_path: Path) -> str:
    write_tiny_model(tmp_path / "model.onnx")
    return str(tmp_path / "model.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a.png", RED), ("b.jpg", GREEN)):
        Image.new("RGB", (40, 30), colour).save(folder / name)
    return folder


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60, **options)


# names


@pytest.mark.parametrize("name", ["", "  "])
def test_empty_name_is_an_error_and_not_the_current_folder(
    model: str, photos: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    assert predict.main([name, "--model", model]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f"error: {name!r}: names no file" in output.err


def test_list_may_have_blank_lines_a_byte_order_mark_and_carriage_returns(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["", *(f"{photos / name}" for name in ("a.png", "", "b.jpg")), "   ", ""]
    lines[2] = ""
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert predict.main([f"@{tmp_path / 'list.txt'}", "--model", model]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(photos / "a.png"),
        str(photos / "b.jpg"),
    ]


def test_options_in_a_list_are_names(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("--json\n")
    assert predict.main([f"@{tmp_path / 'list.txt'}", "--model", model]) == 1
    assert "error: --json: cannot be read: No such file" in capsys.readouterr().err


def test_picture_in_a_lists_place_and_a_missing_list_are_named(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, reason in (("a.png", "no list of names"), ("b.jpg", "no list of names"), ("none", "cannot be read")):
        assert predict.main([f"@{photos / name}", "--model", model]) == 2
        assert reason in capsys.readouterr().err


def test_answer_of_a_file_with_a_newline_and_an_escape_in_its_name_is_one_harmless_line(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.png").rename(photos / "new\nline\x1b[2J.png")
    assert predict.main([str(photos), "--model", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"{photos}/new\\nline\\x1b[2J.png: red")
    assert len(lines) == 2


# folders


def test_what_a_folder_holds_besides_is_named_and_counted(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "notes.txt").write_text("no picture")
    (photos / "gone.jpg").symlink_to("nothing")
    (photos / "elsewhere").symlink_to(tmp_path)
    assert predict.main([str(photos), "--model", model]) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 2
    assert f"error: {photos / 'gone.jpg'}: a link to nothing" in output.err
    assert f"skipped: {photos / 'notes.txt'}: has no picture's name" in output.err
    assert f"skipped: {photos / 'elsewhere'}: a link to a folder" in output.err
    assert output.err.splitlines()[-1] == "2 classified, 1 failed, 2 skipped"


def test_many_skipped_files_are_counted_and_only_the_first_named(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(50):
        (photos / f"{index}.xmp").write_text("")
    assert predict.main([str(photos), "--model", model]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == predict.NAMED_SKIPS + 1
    assert lines[-1] == "2 classified, 0 failed, 50 skipped"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif_is_read(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 30), GREEN).save(photos / "c.avif")
    assert predict.main([str(photos / "c.avif"), "--model", model]) == 0
    assert ": green" in capsys.readouterr().out


def test_heic_is_read_by_pillow_heif(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:15] = RED
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "photo.heic", quality=95)
    found = predict.read_image(tmp_path / "photo.heic")
    assert found.shape == (30, 40, 3)
    assert found[5, 20, 0] > 200 > 60 > found[25, 20, 0]


def test_heic_without_its_package_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "formats", lambda: predict.FORMATS)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(predict.ImageError, match="is a HEIC picture; `pip install pillow-heif`"):
        predict.read_image(tmp_path / "photo.heic")


# streams


def test_reader_that_goes_away_ends_it_silently(model: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{photos / 'a.png'}\n" * 300)
    command = [*PROGRAM, f"@{tmp_path / 'list.txt'}", "--model", model, "--batch-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == ""
        assert program.wait(timeout=30) == -signal.SIGPIPE


def test_ctrl_c_ends_it_without_a_traceback(model: str) -> None:
    command = [*PROGRAM, "-", "--model", model]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stderr is not None
        while not _waits_for_stdin(program.pid):
            assert program.poll() is None
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=30) == -signal.SIGINT
        program.stdin.close()
        assert program.stderr.read() == ""


def _waits_for_stdin(pid: int) -> bool:
    """Whether a thread of it waits in read(2) of its stdin."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        words = (task / "syscall").read_text().split()
        if words[:2] == ["0", "0x0"]:
            return True
    return False


@pytest.mark.parametrize(
    ("redirect", "code", "message"),
    [
        ("> /dev/full", 1, "error: the answers cannot be written: No space left on device"),
        (">&-", 2, "error: stdout is closed; answers go there, or into --output FILE"),
        ("<&-", 1, "error: -: stdin is closed"),
    ],
)
def test_full_disk_and_closed_streams_are_said_in_a_line(
    model: str, photos: Path, redirect: str, code: int, message: str
) -> None:
    name = "-" if redirect == "<&-" else photos / "a.png"
    shell = f"exec {' '.join(PROGRAM)} {name} --model {model} {redirect}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stderr.splitlines()[0] == message
    assert "Traceback" not in done.stderr


def test_closed_stderr_leaves_stdout_to_the_answers(model: str, photos: Path) -> None:
    shell = f"exec {' '.join(PROGRAM)} {photos / 'a.png'} {photos / 'none.png'} --model {model} 2>&-"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there may be a CUDA device here")
def test_absent_gpu_is_one_line_on_stderr(model: str, photos: Path) -> None:
    done = run(photos, "--model", model, "--provider", "cuda")
    assert done.returncode == 2
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: "]


def test_onnx_runtime_is_kept_from_reporting_to_its_maker(model: str, photos: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    show = "import os, predict, onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    command = [sys.executable, "-c", show]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(PROGRAM[1]).parent, env=environment)
    assert done.stdout == "1\n"
    source = Path(PROGRAM[1]).read_text()
    assert source.index('"ORT_DISABLE_TELEMETRY"') < source.index("import onnxruntime")


# when not to answer

THRESHOLDS = {"familiarity": 0.3, "probability": {"red": 0.8}}


def said(model: Path, photos: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert predict.main([str(photos), "--model", str(model), *words]) == 0
    return [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()]


def test_thresholds_in_the_file_decide_what_is_not_answered(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30), (140, 120, 120)).save(photos / "c.png")
    write_tiny_model(tmp_path / "m.onnx", thresholds=THRESHOLDS)
    red, green, gray = said(tmp_path / "m.onnx", photos, capsys)
    assert red.startswith("red 0.9")
    assert green.startswith("unlike anything it was taught (green 0.9")
    assert gray.startswith("not sure (red 0.4")
    always = said(tmp_path / "m.onnx", photos, capsys, "--always")
    assert [line.split()[0] for line in always] == ["red", "green", "red"]


def test_json_has_all_numbers_and_the_decision(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(tmp_path / "m.onnx", thresholds=THRESHOLDS)
    assert predict.main([str(photos), "--model", str(tmp_path / "m.onnx"), "--json"]) == 0
    red, green = map(json.loads, capsys.readouterr().out.splitlines())
    assert (red["decision"], green["decision"]) == ("answered", "unfamiliar")
    assert green["class"] == "green"
    assert set(green["probabilities"]) == set(CLASSES)
    assert red["familiarity"] == pytest.approx(250 / 255, abs=1e-5)


def test_file_without_thresholds_or_familiarity_always_answers(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(tmp_path / "m.onnx", familiarity=False, test_transform=None)
    assert [line.split()[0] for line in said(tmp_path / "m.onnx", photos, capsys)] == ["red", "green"]
    assert predict.main([str(photos), "--model", str(tmp_path / "m.onnx"), "--json"]) == 0
    assert "familiarity" not in json.loads(capsys.readouterr().out.splitlines()[0])


@pytest.mark.parametrize("thresholds", ["{", "[]", '{"probability": {"red": "high"}}'])
def test_unreadable_thresholds_are_refused(
    tmp_path: Path, photos: Path, thresholds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(tmp_path / "m.onnx", thresholds=thresholds)
    assert predict.main([str(photos), "--model", str(tmp_path / "m.onnx")]) == 2
    assert "thresholds cannot be read" in capsys.readouterr().err


def test_one_image_that_the_model_fails_on_spares_its_batch(tmp_path: Path) -> None:
    class Session:
        def get_inputs(self) -> list[object]:
            return [type("Input", (), {"name": "image"})]

        def run(self, _: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            if (feed["image"] == 13).any():
                raise RuntimeError("thirteen")
            return [np.full((len(feed["image"]), 2), 0.5)]

    images = [np.full((2, 2, 3), value, np.uint8) for value in (1, 13, 2)]
    results = predict.infer(predict.Model(Session(), ["a", "b"]), images)
    assert [isinstance(result, predict.Answer) for result in results] == [True, False, True]
    assert "the model failed on it: thirteen" in str(results[1])


# speed and memory, without a clock


def test_images_are_resized_by_pillow_where_the_model_names_its_resize(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    monkeypatch.setattr(predict, "infer", lambda _, batch: [shapes.append(x.shape) or None for x in batch])
    Image.effect_noise((900, 700), 50).save(photos / "large.png")
    write_tiny_model(tmp_path / "m.onnx", test_transform={"resize": 24, "crop": 16})
    model = predict.load_model(tmp_path / "m.onnx", "cpu")
    list(predict.classify(model, predict.find_images([str(photos)]), 16))
    assert shapes == [(24, 24, 3)] * 3


@pytest.mark.parametrize(("transform", "at_once", "num_threads"), [({"resize": 24, "crop": 16}, 4, 2), (None, 1, 8)])
def test_batches_share_the_cores_unless_images_come_at_full_size(
    transform: object, at_once: int, num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "CORES", 8)
    write_tiny_model(tmp_path / "m.onnx", test_transform=transform)
    model = predict.load_model(tmp_path / "m.onnx", "cpu", at_once=4)
    assert (model.at_once, model.session.get_session_options().intra_op_num_threads) == (at_once, num_threads)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_fails_alone(
    name: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(tmp_path / "m.onnx")
    assert predict.main([name, str(photos / "a.png"), "--model", str(tmp_path / "m.onnx")]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"{photos / 'a.png'}: ")
    assert "cannot be read" in said.err


@pytest.mark.parametrize(
    ("words", "share"), [(["a.png", "b.png"], False), (["a.png"] * 17, True), (["."], True), (["@list"], True)]
)
def test_a_few_photos_have_all_cores(words: list[str], share: bool) -> None:
    assert predict.batches_at_once(predict.parse_arguments(words)) == (predict.AT_ONCE if share else 1)


@pytest.mark.parametrize("size", [(149, 224), (224, 149), (168, 224), (40, 300)])
def test_tall_and_wide_pictures_are_resized_as_in_training(size: tuple[int, int]) -> None:
    picture = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(picture, "PNG")
    assert np.array_equal(predict.decode(picture, 128), resize_center_crop(predict.decode(picture), 128, 128))


def test_decoding_runs_no_further_ahead_than_two_batches(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def images():
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield "a", photos / "a.png"

    stream = predict.decoded(images(), 16, batch_size=4)
    next(stream)
    assert taken <= 2 * 4 + (os.cpu_count() or 1)
    stream.close()


def test_batches_run_beside_each_other_in_order(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    def together(_: predict.Model, batch: list[object]) -> list[object]:
        both.wait(timeout=60)  # for ever, were they run one by one
        return batch

    monkeypatch.setattr(predict, "CORES", 2)  # threads
    monkeypatch.setattr(predict, "run", together)
    names = [str(number) for number in range(8)]
    images = ((name, photos / "a.png") for name in names)
    assert [name for name, _ in predict.classify(predict.Model(None, [], side=16, at_once=2), images, 2)] == names


def test_full_size_batches_run_one_by_one(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = threading.Lock()

    def alone(_: predict.Model, batch: list[object]) -> list[object]:
        assert running.acquire(blocking=False)
        time.sleep(0.01)
        running.release()
        return batch

    monkeypatch.setattr(predict, "run", alone)
    images = [(str(number), photos / "a.png") for number in range(8)]
    assert len(list(predict.classify(predict.Model(None, []), iter(images), 2))) == 8
