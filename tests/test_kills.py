"""Killed anywhere, the pipeline picks itself up: `dvc repro` completes, with the bytes of an undisturbed run."""

import collections
import csv
import json
import os
import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.mend import mend as clear_away
from stages.download.fetch import fetch
from stages.shared.cli import TransientError
from stages.shared.dataset import TrainSplit
from stages.shared.files import file_digest, read_json, replacing
from tests.experiment import TINY, make_project, write_params
from tests.killer import Kill
from tests.misbehaving_server import misbehaving_server
from tests.nursery import Nursery
from tests.test_training import model_and_head, train

SEED = int(os.environ.get("KILL_SEED", "0"))
STAGES = {
    "download@dataset": "stages.download dataset", "download@model": "stages.download model", "pretrain": "stages.pretrain",
    "preprocess": "stages.preprocess", "features": "stages.features", "inspect": "stages.inspect", "zero_shot": "stages.zero_shot", "train@finetune": "stages.train finetune",
    "train@scratch": "stages.train scratch", "evaluate@finetune": "stages.evaluate finetune",
    "evaluate@scratch": "stages.evaluate scratch", "compare": "stages.compare", "export": "stages.export",
    "check_parity": "stages.check_parity", "report": "stages.report",
}  # fmt: skip
KILLED = -9
TIMES = {"seconds", "examples_per_second", "validation_seconds"}  # what no two runs agree on
OF_TIMES = ("comparison.md", "parity.json", "parity.md", "report.html")
# DVC writes these in place: killed in just that moment it leaves them in pieces, of which every later run complains.
TORN = re.compile(r"'(?:\./)?(dvc\.lock|\.dvc/tmp/rwlock)'(?: is invalid| validation failed|.*structure is corrupted)")
EMPTY_RUN = "join() argument must be str, bytes, or os.PathLike object, not 'NoneType'"  # DVC killed in noting a run


@dataclass
class Project:
    """An experiment's folder, what was done there (beside it), and the forks that do it."""

    root: Path
    nursery: Nursery
    last_run: int = 0  # where its output begins in the log
    mended: int = 0  # how often DVC needed help

    @property
    def journal(self) -> Path:
        return self.root.with_suffix(".journal")

    @property
    def log(self) -> Path:
        return self.root.with_suffix(".log")

    def repro(self, *arguments: str, kill: Kill | None = None) -> int:
        self.last_run = self.log.stat().st_size if self.log.exists() else 0
        return self.nursery.run(self.root, self.journal, self.log, "dvc", "repro", *arguments, kill=kill)

    def lines(self, kind: str) -> list[list[Any]]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [line for line in map(json.loads, lines) if line[0] == kind]

    def note_killed(self, kill: Kill) -> None:
        """One at a random time could not be noted by itself; the change before it says where."""
        with self.journal.open("a") as file:
            print(json.dumps(["killed", *self.lines("did")[-1][2:], vars(kill)]), file=file)

    def output(self) -> str:
        """What the last run printed."""
        return self.log.read_bytes()[self.last_run :].decode()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which nothing was run; its copies share the commit, which export writes down."""
    three_epochs = {"train.finetune.epochs": 3, "train.scratch.epochs": 3, "train.scratch.validation": "none"}
    return make_project(tmp_path_factory.mktemp("kills") / "fresh", TINY | three_epochs)


def copy_of(fresh: Path, name: str, nursery: Nursery) -> Project:
    return Project(shutil.copytree(fresh, fresh.with_name(name), symlinks=True), nursery)


@dataclass
class Undisturbed:
    changes: dict[str, int]  # how many a process makes, as "export: dvc repro", "export: stages.export"
    seconds: dict[str, float]  # by stage


def run_undisturbed(project: Project) -> Undisturbed:
    changes: dict[str, int] = {}
    seconds = {}
    for stage in STAGES:
        begun, before = time.monotonic(), len(project.lines("did"))
        assert project.repro(stage) == 0, project.output()
        seconds[stage] = time.monotonic() - begun
        changes |= collections.Counter(f"{stage}: {line[1]}" for line in project.lines("did")[before:])
    return Undisturbed(changes, seconds)


def results(root: Path) -> dict[str, Any]:
    """Every artifact's digest, or its content without times."""
    files = sorted(path for path in (root / "artifacts").rglob("*") if path.is_file())
    return {str(path.relative_to(root)): timeless(path) for path in files if path.name not in OF_TIMES}


def timeless(path: Path) -> Any:
    if path.name == "history.csv":
        return [[row["epoch"], row["train_loss"], row["train_accuracy"]] for row in csv.DictReader(path.open())]
    return without_times(read_json(path)) if path.suffix == ".json" else file_digest(path)


def without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [without_times(entry) for entry in value]
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in TIMES}
    return value


def attack(project: Project, stage: str, kills: list[Kill]) -> None:
    """`dvc repro stage` once a kill, then to its end. Only a kill, or its trace that DVC names, may keep it from that."""
    done = False
    for kill in kills:
        code = project.repro(*["--force", "--single-item"] * done, stage, kill=kill)
        if kill.seconds is not None and code == KILLED:
            project.note_killed(kill)
        if code not in (0, KILLED):
            mend(project, f"seed {SEED}: {stage}, before this kill ({kill}), or by it")
        done = done or code == 0
    while project.repro(stage) != 0:
        mend(project, f"seed {SEED}: {stage}, after {'; '.join(map(str, kills))}")


def mend(project: Project, when: str) -> None:
    """Remove what DVC, killed in the middle of writing it, stumbles over ever after; fail where it said anything else."""
    said = project.output()
    if torn := TORN.findall(said):
        (project.root / torn[-1]).unlink()
    else:
        assert EMPTY_RUN in said, f"{when}:\n{said}"
        empty = [path for path in (project.root / ".dvc/cache/runs").glob("*/*") if not any(path.iterdir())]
        assert empty, f"{when}:\n{said}"
        for path in empty:
            path.rmdir()
    project.mended += 1
    print(f"{when}: mended {torn[-1] if torn else 'an empty folder of the run-cache'}")


def leftovers(root: Path) -> list[Path]:
    """What a killed writer of ours left. DVC's own (.*.tmp) may stay."""
    return [path for folder in ("artifacts", ".cache/train") for path in (root / folder).rglob(".*.part")]


def tell(project: Project) -> int:
    """Print how often each stage was killed, and where; returns how often in all."""
    killed = project.lines("killed")
    by_who = collections.Counter(line[3]["who"] or "at a random time" for line in killed)
    by_how = collections.Counter(line[3]["how"] for line in killed if line[3]["seconds"] is None)
    lost = len(project.lines("lost"))
    resumed = len(re.findall(r"^resuming after epoch", project.log.read_text(), re.MULTILINE))
    print(
        f"seed {SEED}: {len(killed)} kills, {dict(by_how)}, {lost} files lost their ends, {resumed} resumed trainings, "
        f"{project.mended} times DVC had to be helped"
    )
    for who, count in by_who.most_common():
        print(f"  {count:3} {who}")
    return len(killed)


def check_recovered(project: Project, undisturbed: dict[str, Any]) -> None:
    found = results(project.root)
    differing = [path for path in undisturbed | found if undisturbed.get(path) != found.get(path)]
    differing = [path for path in differing if not re.search(r"/\.[^/]*\.tmp$", path)]
    assert not differing, f"seed {SEED}: {differing} after {[line[1:] for line in project.lines('killed')]}"
    assert not leftovers(project.root)


def test_killed_where_it_hurts_most_it_picks_itself_up(fresh: Path, nursery: Nursery) -> None:
    undisturbed, project = copy_of(fresh, "undisturbed", nursery), copy_of(fresh, "killed", nursery)
    assert undisturbed.repro("train@scratch") == 0, undisturbed.output()
    kills = {
        "download@dataset": [
            Kill("stages.download dataset", 0, "power", r"rename .*\.dataset\.part$"),  # all is drawn, not in its place
            Kill("dvc repro", 20, at=r"link (artifacts/download|\.dvc/cache/files)"),  # half of it is in DVC's cache
        ],
        # train/ is in its place, test/ is not
        "preprocess": [Kill("stages.preprocess", 0, "power", r"rename .*/test$")],
        "pretrain": [Kill("stages.pretrain", 0, "power", r"rename .*weights")],  # they are written, not in their place
        "train@scratch": [
            Kill("stages.train scratch", 1, "power", r"rename .*\.pt\."),  # one epoch is kept, the second not quite
            Kill("stages.train scratch", 1, "torn", r"open .*\.pt\."),  # the second is, the third begins to be written
            Kill("stages.train scratch", 0, "power", r"rename .*checkpoint"),  # all three are, the checkpoint is not
        ],
    }
    for stage, chosen in kills.items():
        attack(project, stage, chosen)
    assert tell(project) == sum(map(len, kills.values()))
    assert [f"resuming after epoch {epoch} " in project.log.read_text() for epoch in (1, 2, 3)] == [True] * 3
    check_recovered(project, results(undisturbed.root))
    assert project.repro("train@scratch") == 0
    assert "Running stage" not in project.output()


@pytest.mark.slow
def test_killed_while_it_writes_shards_it_picks_itself_up(fresh: Path, nursery: Nursery) -> None:
    undisturbed, project = copy_of(fresh, "shards", nursery), copy_of(fresh, "shards-killed", nursery)
    for copy in (undisturbed, project):
        write_params(copy.root, TINY | {"preprocess.store": "encoded"})
    assert undisturbed.repro("preprocess") == 0, undisturbed.output()
    kills = [
        Kill("stages.preprocess", 0, "torn", r"open .*train-shards/shard-000"),  # empty
        Kill(
            "stages.preprocess", 0, "power", r"open .*test-shards/index"
        ),  # the shards are written, of one there is no index
        Kill(
            "stages.preprocess", 0, "power", r"rename .*test-shards/shard-000"
        ),  # train/ is written, test/images/ is empty
        Kill("stages.preprocess", 0, "power", r"rename .*/test$"),  # train/ is in its place, test/ is not
        Kill("dvc repro", 3, at=r"link (artifacts/preprocess|\.dvc/cache/files)"),
    ]
    attack(project, "preprocess", kills)
    assert tell(project) == len(kills)
    check_recovered(project, results(undisturbed.root))
    assert (project.root / "artifacts/preprocess/test/images/index.npy").exists()


@pytest.mark.slow
@pytest.mark.timeout(2700)  # more than fifteen minutes where other programs run
def test_a_hundred_kills_anywhere_change_nothing(
    fresh: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, project = copy_of(fresh, "all-undisturbed", nursery), copy_of(fresh, "all-killed", nursery)
    undisturbed = run_undisturbed(original)
    for stage, own in STAGES.items():
        attack(project, stage, draw_kills(stage, own, undisturbed))
    while project.repro() != 0:
        mend(project, f"seed {SEED}: at the end")
    assert tell(project) >= 100
    monkeypatch.setattr("flows.mend.LEFT", 0.0)
    clear_away(project.root)  # as a flow does first: a stage that was killed when run again may not have run since
    check_recovered(project, results(original.root))


def draw_kills(stage: str, own: str, undisturbed: Undisturbed) -> list[Kill]:
    """In the stage (more of them where there are epochs), in DVC before and after it, and at random times."""
    generator = random.Random(f"{SEED} {stage}")
    kills = []
    for who, number, hows in (
        (own, 14 if "train" in own else 6, ("before", "torn", "power")),
        ("dvc repro", 4, ("before", "power")),
    ):
        num_changes = undisturbed.changes[f"{stage}: {who}"]
        changes = sorted(generator.sample(range(num_changes), min(number, num_changes)))
        kills += [
            Kill(who, change, hows[i % len(hows)], seed=generator.randrange(2**31)) for i, change in enumerate(changes)
        ]
    kills += [Kill(seconds=generator.uniform(0, undisturbed.seconds[stage])) for _ in range(3)]
    generator.shuffle(kills)
    return kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept"), [("dvc.lock", ""), ("dvc.lock", "schema: '2.0'\nstages:\n  pre"), (".dvc/tmp/rwlock", "")]
)
def test_what_dvc_leaves_in_pieces_it_names_and_without_it_nothing_runs_again(
    fresh: Path, nursery: Nursery, name: str, kept: str
) -> None:
    project = copy_of(fresh, f"pieces-{Path(name).name}-{len(kept)}", nursery)
    assert project.repro("preprocess") == 0, project.output()
    expected, path = results(project.root), project.root / name
    path.write_text(kept)
    assert project.repro("preprocess") == 255
    mend(project, name)
    assert project.repro("preprocess") == 0, project.output()
    assert "Running stage" not in project.output()  # the run-cache remembers what dvc.lock said
    assert results(project.root) == expected


@pytest.fixture
def split() -> TrainSplit:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 36, 36, 3), dtype=np.uint8)
    return TrainSplit(pixels, np.full((12, 2), 36, np.int32), np.arange(12, dtype=np.int64) % 2)


def damage(kind: str, saved: bytes) -> bytes:
    half = len(saved) // 2
    flipped = bytes([saved[half] ^ 1])
    return {
        "empty": b"", "ten bytes": saved[:10], "half": saved[:half], "but one byte": saved[:-1], "garbage": b"garbage" * 99,
        "zeros at the end": saved[:half] + bytes(len(saved) - half), "a bit": saved[:half] + flipped + saved[half + 1 :],
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["empty", "ten bytes", "half", "but one byte", "garbage", "zeros at the end", "a bit"])
def test_a_damaged_resume_file_is_dropped_with_a_message(
    split: TrainSplit, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "resume.pt"
    arguments: dict[str, Any] = {"epochs": 1, "batch_size": 6, "resume_path": path}
    expected = train(*model_and_head(), split, **arguments)
    path.write_bytes(damage(kind, path.read_bytes()))
    history = train(*model_and_head(), split, **arguments)
    assert (
        f"{path}: damaged, as by a power cut while it was written; starting from the first epoch"
        in capsys.readouterr().out
    )
    assert [epoch.train_loss for epoch in history] == [epoch.train_loss for epoch in expected]


def test_unflushed_bytes_of_a_killed_download_are_not_kept_where_no_checksum_would_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    arguments: dict[str, Any] = {"checksum": None, "key": "dataset.source", "cache": tmp_path}
    with misbehaving_server() as server:
        server.body, server.faults = random.Random(0).randbytes(300_000), ["cut"]
        with pytest.raises(TransientError):
            fetch(f"{server.base}/hotdog.zip", **arguments)
        (part,) = tmp_path.glob("*.part")
        flushed = part.stat().st_size
        os.truncate(
            part, flushed + 50_000
        )  # as after a power cut in the next run: the length is there, the bytes are zeros
        assert fetch(f"{server.base}/hotdog.zip", **arguments).read_bytes() == server.body
        assert server.ranges() == [None, f"bytes={flushed}-"]


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".out.json.0123abcd.part").write_text("half")
    (tmp_path / ".out.json.md.0123abcd.part").write_text("of another file")
    with replacing(tmp_path / "out.json") as part:
        part.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.json.md.0123abcd.part", "out.json"]
