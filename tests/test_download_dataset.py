"""Where a dataset may come from, and what is told of one that cannot be used."""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ruamel.yaml import YAML

import stages.download.__main__ as stage
from stages.download.dataset import bring_dataset, copy_folder
from stages.download.output_folder import locked
from stages.shared import artifacts
from stages.shared.cli import TransientError
from stages.shared.files import read_json
from tests.misbehaving_server import MisbehavingServer, misbehaving_server

PARAMS = Path(__file__).parent.parent / "params.yaml"
REAL = (Path(__file__).parent.parent / "../shared/real/hotdog-small.zip").resolve()
NAMES = [
    f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("hotdog", "not-hotdog") for i in range(2)
]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIRROR_BASE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with misbehaving_server() as server:
        yield server


def write_params(**dataset: Any) -> None:
    values = YAML(typ="safe").load(PARAMS)
    values["dataset"] |= {"synthetic": {"num_train": 5, "num_test": 4, "side": 32}, **dataset}
    YAML().dump(values, Path("params.yaml"))


def make_folder(root: str = "set/hotdog") -> Path:
    for name in NAMES:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return Path(root)


def make_archive(root: str = "set") -> Path:
    make_folder(f"{root}/hotdog")
    return Path(shutil.make_archive("hotdog", "zip", root))


def brought() -> list[str]:
    images = artifacts.SOURCE_DATASET / "images"
    return sorted(path.relative_to(images).as_posix() for path in images.rglob("*") if path.is_file())


def bring(source: str, **options: Any) -> dict[str, Any]:
    usual = {"checksum": None, "num_train": 4, "num_test": 4, "side": 32, "seed": 0, "cache": Path(".cache")}
    return bring_dataset(Path("built/images"), source=source, **(usual | options))


def test_the_same_images_come_from_url_archive_and_folder(server: MisbehavingServer) -> None:
    archive = make_archive()
    server.body = archive.read_bytes()
    digest = hashlib.sha256(server.body).hexdigest()
    sources = {"url": f"{server.base}/hotdog.zip?token=SECRET", "archive": "hotdog.zip", "folder": "set"}
    for kind, source in sources.items():
        write_params(source=source if kind == "folder" else f"{source}#sha256={digest}")
        stage.main("dataset")
        assert brought() == sorted(NAMES)
        facts = read_json(artifacts.SOURCE_DATASET / "source.json")
        shown = source.replace("token=SECRET", "***")
        assert (facts["kind"], facts["source"], facts["num_files"]) == (kind, shown, 8)
        assert facts["num_bytes"] == sum(len(name) for name in NAMES)
        assert (facts["sha256"] == digest) == (kind != "folder")


def test_a_stopped_download_leaves_the_last_dataset_and_is_resumed(server: MisbehavingServer) -> None:
    write_params(source="synthetic")
    stage.main("dataset")
    before = brought()
    server.body = make_archive().read_bytes()
    server.faults = ["cut"]
    write_params(source=f"{server.base}/hotdog.zip")
    with pytest.raises(TransientError):
        stage.main("dataset")
    assert brought() == before
    stage.main("dataset")
    assert brought() == sorted(NAMES)
    assert server.ranges()[1] is not None
    assert sorted(path.name for path in artifacts.SOURCE_DATASET.parent.iterdir()) == ["dataset"]


def test_what_a_killed_run_left_beside_is_cleared() -> None:
    write_params(source="synthetic")
    stale = artifacts.SOURCE_DATASET.with_name(".dataset.part")
    (stale / "images/train").mkdir(parents=True)
    (stale / "images/train/half.png").write_bytes(b"?")
    stage.main("dataset")
    assert not any("half" in name for name in brought())
    assert not stale.exists()


def test_a_second_process_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, entered = threading.Event(), threading.Event()
    monkeypatch.setattr("builtins.print", lambda *_, **__: waiting.set())

    def second() -> None:
        with locked(Path("cache"), "dataset"):
            entered.set()

    thread = threading.Thread(target=second, daemon=True)
    with locked(Path("cache"), "dataset"):
        thread.start()
        assert waiting.wait(10)
        assert not entered.is_set()
    assert entered.wait(10)
    thread.join(10)


def test_a_mirror_is_taken_from_the_environment(server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.body = make_archive().read_bytes()
    monkeypatch.setenv("MIRROR_BASE", f"{server.base}/mirror")
    write_params(source="http://nowhere.invalid/deep/hotdog.zip")
    stage.main("dataset")
    assert brought() == sorted(NAMES)
    assert server.requests[0][0] == "/mirror/hotdog.zip"
    assert "127.0.0.1" not in (artifacts.SOURCE_DATASET / "source.json").read_text()


def test_drawn_images_are_seeded_and_counted_over_both_classes() -> None:
    write_params(source="synthetic")
    stage.main("dataset")
    first = read_json(artifacts.SOURCE_DATASET / "source.json")
    names = brought()
    assert names[-5:] == [
        f"train/{name}.png"
        for name in ["hotdog/00000", "hotdog/00001", "hotdog/00002", "not-hotdog/00000", "not-hotdog/00001"]
    ]
    assert len(names) == 9
    with Image.open(artifacts.SOURCE_DATASET / "images" / names[0]) as image:
        assert (image.format, image.mode, max(image.size)) == ("PNG", "RGB", 32)
    stage.main("dataset")
    assert read_json(artifacts.SOURCE_DATASET / "source.json") == first
    contents = {(artifacts.SOURCE_DATASET / "images" / name).read_bytes() for name in names}
    assert len(contents) == 9  # no test picture is a train picture


def test_another_seed_draws_other_images() -> None:
    digests = set()
    for seed in (0, 1):
        digests.add(bring("synthetic", seed=seed)["sha256"])
        shutil.rmtree("built")
    assert len(digests) == 2


def test_the_test_images_stay_when_more_train_images_are_drawn() -> None:
    drawn = []
    for num_train in (4, 6):
        bring("synthetic", num_train=num_train)
        drawn.append([path.read_bytes() for path in sorted(Path("built/images/test").rglob("*.png"))])
        shutil.rmtree("built")
    assert drawn[0] == drawn[1]


def test_too_few_drawn_images_for_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset.synthetic.num_test is 1; make it at least 2"):
        bring("synthetic", num_test=1)


@pytest.mark.parametrize("hidden", ["set/.git", "set/photos/.ipynb_checkpoints"])
def test_a_hidden_folder_is_neither_a_class_nor_a_wrapping(hidden: str) -> None:
    make_folder("set/photos/")
    Path(hidden).mkdir(parents=True)
    bring("set")
    assert sorted(path.name for path in Path("built/images").iterdir() if not path.name.startswith(".")) == [
        "test",
        "train",
    ]


@pytest.mark.parametrize("wrapping", ["", "hotdog/", "data/hotdog/"])
def test_folders_around_the_classes_are_removed(wrapping: str) -> None:
    make_folder(f"set/{wrapping}")
    bring("set")
    assert sorted(path.name for path in Path("built/images").iterdir()) == ["test", "train"]


def test_class_folders_without_splits_stay_and_loose_files_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    make_folder("set/data/hotdog")
    Path("set/README.txt").write_text("about")
    Path("set/data/cat").mkdir()
    Path("set/data/cat/1.png").write_bytes(b"1")
    bring("set")
    assert sorted(path.name for path in Path("built/images").iterdir()) == ["cat", "hotdog"]
    assert "left out beside data/: README.txt" in capsys.readouterr().out


def test_a_single_class_folder_is_not_mistaken_for_a_wrapping() -> None:
    Path("set/cat").mkdir(parents=True)
    Path("set/cat/1.png").write_bytes(b"1")
    bring("set")
    assert Path("built/images/cat/1.png").is_file()


@pytest.mark.parametrize("source", ["no/such", "no-such.zip"])
def test_a_missing_source_says_what_is_allowed(source: str) -> None:
    with pytest.raises(
        ValueError, match=rf"dataset.source: '{source}' does not exist .*allowed: an http.* or synthetic"
    ):
        bring(source)


def test_an_unsupported_scheme_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"dataset.source: s3://bucket/x.zip: the scheme s3:// is not supported"):
        bring("s3://bucket/x.zip")


def test_a_source_without_files_is_refused() -> None:
    Path("empty/train/cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"dataset.source: empty holds no files"):
        bring("empty")


def test_a_local_archive_with_another_checksum_says_what_to_set() -> None:
    make_archive()
    with pytest.raises(
        ValueError, match=r"hotdog.zip: sha1 [0-9a-f]{40}, expected 0{40}; .*end dataset.source with #sha1="
    ):
        bring("hotdog.zip", checksum="sha1:" + "0" * 40)


def test_links_inside_a_folder_are_followed_and_those_that_leave_are_refused() -> None:
    folder = make_folder("set")
    (folder / "train/hotdog/link.png").symlink_to("0.png")
    (folder / "train/hotdog/.DS_Store").write_bytes(b"junk")
    bring("set")
    copied = Path("built/images/train/hotdog/link.png")
    assert copied.read_bytes() == (folder / NAMES[0]).read_bytes()
    assert not copied.is_symlink()
    assert not copied.with_name(".DS_Store").exists()
    Path("secret").write_text("secret")
    (folder / "train/hotdog/leak.png").symlink_to(Path("secret").resolve())
    with pytest.raises(ValueError, match=r"leak.png: a link that leaves dataset.source"):
        copy_folder(folder, Path("copy"))


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("broken", r"odd: a link that leads nowhere, or back to itself; delete the link$"),
        ("loop", r"odd: a link that leads nowhere, or back to itself; delete the link$"),
        ("endless", r"odd: a link that leads to a folder that it lies in; delete the link$"),
        ("fifo", r"odd: no file but a device; delete it"),
        ("folder", r"odd: a link to a folder; delete the link, or copy the folder with `cp -rL`"),
    ],
)
def test_what_is_no_file_is_refused_without_hanging_and_with_advice_that_helps(kind: str, advice: str) -> None:
    folder = make_folder("set")
    odd = folder / "train/odd"
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to(
            {"broken": "nothing", "loop": "odd", "endless": "..", "folder": "hotdog"}[kind],
            target_is_directory=kind in ("endless", "folder"),
        )
    with pytest.raises(ValueError, match=advice):
        copy_folder(folder, Path("copy"))


def test_a_folder_is_not_copied_into_itself() -> None:
    make_folder("set")
    with pytest.raises(ValueError, match=r"contains the folder it would be copied to"):
        bring(".")


def test_a_users_files_are_never_linked_to() -> None:
    folder = make_folder("set")
    bring("set")
    assert (folder / NAMES[0]).stat().st_ino != (Path("built/images") / NAMES[0]).stat().st_ino


@pytest.mark.parametrize("what", ["", "weights"])
def test_an_unknown_word_on_the_command_line_is_explained(what: str) -> None:
    write_params()
    with pytest.raises(ValueError, match=r"download what"):
        stage.main(what)


@pytest.mark.skipif(not REAL.exists(), reason="../shared/real is not there: the real photo set was not tried")
def test_the_real_photo_set_is_unpacked() -> None:
    digest = "b01e5ec07d5136168b6a92eae8a7cd92fbb0e13ee158cfcb127a191433577e9d"
    facts = bring(str(REAL), checksum=f"sha256:{digest}")
    assert (facts["num_files"], facts["sha256"]) == (250, digest)
    assert len(list(Path("built/images/train/hotdog").glob("*.jpg"))) == 100
