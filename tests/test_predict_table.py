"""predict.py --output: whole rows whatever happens, and --resume; --rank."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consumers import predict, predict_rank
from tests.exported_project import ROOT
from tests.tiny_model import write_tiny_model

PROGRAM = [sys.executable, str(ROOT / "consumers" / "predict.py")]


@pytest.fixture
def model(tmp_path: Path) -> str:
    write_tiny_model(tmp_path / "model.onnx", thresholds={"familiarity": 0.2})
    return str(tmp_path / "model.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.new("RGB", (9, 7), tuple(map(int, rng.integers(0, 256, 3)))).save(folder / f"{index:02}.png")
    (folder / "05.png").write_text("no picture")
    (folder / "03.png").rename(folder / "03, a\nb.png")
    return folder


def read_table(path: Path) -> list[dict[str, object]]:
    """Rows of any kind of table as one: image, class, decision, error, and the probability of red."""
    if path.suffix == ".parquet":
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    elif path.suffix == ".csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        known = row.get("probability:red") or row.get("probabilities", {}).get("red")
        row["red"] = round(float(known), 4) if known else None  # another batch rounds otherwise
    return [{key: row.get(key) or None for key in ("image", "class", "decision", "error", "red")} for row in rows]


def by_image(path: Path) -> list[dict[str, object]]:
    """In the order of names: what had failed is tried again, and so comes last."""
    return sorted(read_table(path), key=lambda row: str(row["image"]))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_table_has_a_row_an_image_failed_ones_with_the_reason(
    model: str, photos: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    assert predict.main([str(photos), "--model", model, "--output", str(tmp_path / f"t{suffix}")]) == 1
    rows = read_table(tmp_path / f"t{suffix}")
    assert len(rows) == 12
    assert [Path(str(row["image"])).name for row in rows][2:5] == ["02.png", "03, a\\nb.png", "04.png"]
    assert "is no image in" in str(rows[5]["error"])
    assert {row["decision"] for row in rows} == {"answered", "unfamiliar", None}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.onnx", "photos", f"t{suffix}"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_resumed_table_equals_an_undisturbed_one_wherever_it_was_cut(
    model: str, photos: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    words = [str(photos), "--model", model, "--output"]
    predict.main([*words, str(whole)])
    rows = tmp_path / "cut.parquet.rows.jsonl" if suffix == ".parquet" else cut
    if suffix == ".parquet":  # as far as a killed run has come
        predict.main([*words, str(tmp_path / "rows.jsonl")])
        content = (tmp_path / "rows.jsonl").read_bytes()
    else:
        content = whole.read_bytes()
    for at in (0, 5, len(content) // 3, len(content) // 2, len(content) - 1, len(content)):
        rows.write_bytes(content[:at])
        predict.main([*words, str(cut), "--resume"])
        assert by_image(cut) == by_image(whole), at
        cut.unlink()


def test_rows_of_a_killed_parquet_run_are_not_overwritten(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "t.parquet.rows.jsonl"
    rows.write_text('{"image": "a"}\n')
    assert predict.main([str(photos), "--model", model, "--output", str(tmp_path / "t.parquet")]) == 2
    assert f"{rows}: is there already; go on with it by --resume" in capsys.readouterr().err
    assert rows.read_text()


def test_finished_parquet_is_gone_on_with(model: str, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = tmp_path / "t.parquet"
    (photos / "11.png").rename(tmp_path / "later.png")
    words = [str(photos), "--model", model, "--output", str(table), "--resume"]
    predict.main(words)
    before = by_image(table)
    (tmp_path / "later.png").rename(photos / "11.png")
    predict.main(words)
    assert by_image(table)[:-1] == before
    assert len(read_table(table)) == 12


def test_resume_classifies_only_what_is_not_there(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(photos), "--model", model, "--output", str(tmp_path / "t.csv")]
    predict.main(words)
    monkeypatch.setattr(predict, "infer", lambda _, images: images and pytest.fail("nothing was left to do"))
    assert predict.main([*words, "--resume"]) == 1
    assert "1 failed, 0 skipped, 11 done before" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_resume_tries_again_what_had_failed(model: str, photos: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    words = [str(photos), "--model", model, "--output", str(tmp_path / f"t{suffix}"), "--resume"]
    assert predict.main(words) == 1
    Image.new("RGB", (9, 7)).save(photos / "05.png")
    assert predict.main(words) == 0
    rows = read_table(tmp_path / f"t{suffix}")
    assert len({row["image"] for row in rows}) == len(rows) == 12
    assert not any(row["error"] for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.onnx", "photos", f"t{suffix}"])


def test_existing_and_foreign_tables_are_left_alone(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content, words, reason in (
        ("t.csv", "mine\n", [], "is there already"),
        ("t.csv", "mine\n", ["--resume"], "line 1 has other columns"),
        ("t.jsonl", "[1]\n", ["--resume"], "line 1 is no row"),
        ("t.txt", "mine\n", [], "ends in none of"),
    ):
        (tmp_path / name).write_text(content)
        assert predict.main([str(photos), "--model", model, "--output", str(tmp_path / name), *words]) == 2
        assert reason in capsys.readouterr().err
        assert (tmp_path / name).read_text() == content


def test_full_disk_is_said_with_what_to_do(model: str, photos: Path, tmp_path: Path) -> None:
    words = f"{photos} {photos} {photos} {photos} --model {model} --output {tmp_path / 't.jsonl'}"
    shell = f"ulimit -f 4; exec {' '.join(PROGRAM)} {words}"  # 2 or 4 kB, by the shell
    unmeasured = {
        name: value for name, value in os.environ.items() if not name.startswith("COV")
    }  # it writes files too
    done = subprocess.run(["bash", "-c", shell], env=unmeasured, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "t.jsonl: File too large; mend that and go on with --resume" in done.stderr
    assert "Traceback" not in done.stderr


def test_program_alone_classifies_and_names_the_file_that_other_options_need(
    model: str, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    program = tmp_path / "alone" / "predict.py"
    program.write_bytes(Path(PROGRAM[1]).read_bytes())
    words = [sys.executable, str(program), str(photos / "00.png"), "--model", model]
    assert subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    for option, name in ((["--output", "t.csv"], "predict_table.py"), (["--rank"], "predict_rank.py")):
        done = subprocess.run([*words, *option], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert f"this option needs {name} beside predict.py" in done.stderr


# what to label next


def test_ranking_prefers_the_uncertain_and_spreads_over_what_looks_alike() -> None:
    probabilities = [np.array(row, np.float32) for row in ([0.5, 0.5], [0.51, 0.49], [0.55, 0.45], [0.99, 0.01])]
    points = [np.array(row, np.float32) for row in ([1, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, 1])]
    assert list(predict_rank.order(probabilities, points)) == [0, 2, 3, 1]  # 1 is 0 once more
    assert list(predict_rank.order([], [])) == []
    assert sorted(predict_rank.order(probabilities, [None] * 4)) == [0, 1, 2, 3]


def test_ranking_orders_all_pictures_by_features_out_of_the_file(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dimensions = []
    original = predict_rank.order
    monkeypatch.setitem(sys.modules, "predict_rank", predict_rank)
    monkeypatch.setattr(
        predict_rank, "order", lambda rows, points: [dimensions.append(points[0].shape), *original(rows, points)][1:]
    )
    (photos / "05.png").unlink()
    assert predict.main(["--rank", str(photos), "--model", model]) == 0
    names = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(set(names)) == 11
    assert dimensions == [(3,)]
