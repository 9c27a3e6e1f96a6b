"""How far it goes is measured on photos that differ, counts every byte once, and is shown as far as it was measured."""

import os

from benchmarks.scale import disk, draw_source, run, table


def test_drawn_photos_differ_and_are_drawn_once(tmp_path):
    draw_source(tmp_path, 10, (32, 24))
    photos = sorted(tmp_path.rglob("*.jpg"))
    assert [path.parts[-3:-1] for path in photos] == [("test", "hot"), ("test", "not")] + [("train", "hot")] * 4 + [
        ("train", "not")
    ] * 4
    assert len({path.read_bytes() for path in photos}) == 10
    photos[0].write_bytes(b"as it was")
    draw_source(tmp_path, 10, (32, 24))
    assert photos[0].read_bytes() == b"as it was"


def test_a_link_takes_no_disk(tmp_path):
    for folder in ("results", "cache"):
        (tmp_path / folder).mkdir()
    (tmp_path / "results/a").write_bytes(bytes(100_000))
    alone = disk(tmp_path / "results")
    os.link(tmp_path / "results/a", tmp_path / "cache/a")
    assert disk(tmp_path / "results", tmp_path / "cache") == alone >= 100_000


def test_a_command_is_charged_with_its_processors_time_and_its_largest_memory(tmp_path):
    _, cpu_seconds, peak_bytes = run(tmp_path, "timeit", "-n", "1", "-r", "1", "bytes(2**26)")
    assert cpu_seconds > 0
    assert peak_bytes > 2**26


def test_the_table_shows_time_beyond_that_of_a_few_photos_and_what_was_not_measured():
    few = {"preprocess_cpu_seconds": 10.0, "train_cpu_seconds": 8.0}
    many = {"source_bytes": 2e6, "preprocess_cpu_seconds": 13.0, "train_cpu_seconds": 24.0, "disk_bytes": 5e6}
    (row,) = table({"10 encoded": few, "1010 encoded": many}).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["1,010", "encoded", "2 MB", "5 MB, 2.5 times the source"]
    assert cells[4:7] == ["3.00 ms", "20.00 ms", "not measured"]
