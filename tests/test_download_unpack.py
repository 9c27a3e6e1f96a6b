"""Hostile and odd archives: what must not get out of them, and what must."""

import gzip
import io
import random
import stat
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from stages.download import unpack as rules
from stages.download.unpack import unpack


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def zip_of(*members: tuple[str, bytes], path: str = "a.zip") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compress_type=zipfile.ZIP_DEFLATED)
    return Path(path)


def tar_of(*members: tuple[str, bytes], path: str = "a.tar", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return Path(path)


def unpacked(archive: Path, **bounds: int) -> dict[str, bytes]:
    target = Path("out")
    unpack(archive, target, **bounds)
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def outside() -> set[str]:
    return {path.name for path in Path().iterdir()} | {
        path.name for path in Path("..").iterdir() if "evil" in path.name
    }


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_are_unpacked_whatever_their_compression(mode: str) -> None:
    data = random.Random(0).randbytes(1_100_000)
    archive = tar_of(("./hotdog/a.png", data), ("hotdog/b.png", b""), ("hotdog/c.png", b"c" * 512), mode=mode)
    assert unpacked(archive) == {"hotdog/a.png": data, "hotdog/b.png": b"", "hotdog/c.png": b"c" * 512}


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "a/../../evil.png",
        "..\\evil.png",
        "a\\..\\..\\evil.png",
        "/evil.png",
        "//host/evil.png",
        "\\evil.png",
        "C:\\evil.png",
    ],
)
def test_no_member_leaves_the_folder(pack: type, name: str) -> None:
    archive = pack(("ok.png", b"1"), (name, b"2"))
    with pytest.raises(ValueError, match=r"(absolute path|leaves the folder)"):
        unpack(archive, Path("out"))
    assert outside() == {archive.name, "out"}
    assert not Path("/evil.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes) -> None:
    with tarfile.open("a.tar", "w") as file:
        info = tarfile.TarInfo("train/link")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(ValueError, match=r"'train/link' is a link or a device"):
        unpack(Path("a.tar"), Path("out"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(kind: int) -> None:
    info = zipfile.ZipInfo("train/link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile("a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match=r"'train/link' is a link or a device"):
        unpack(Path("a.zip"), Path("out"))


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/x.png", "a/x.png"),
        ("a/x.png", "a/X.png"),
        ("a/x.png", "A/y.png"),
        ("a/\u00e9.png", "a/e\u0301.png"),
        ("a/stra\u00dfe.png", "a/STRASSE.png"),
        ("a", "a/x.png"),
        ("a/x.png", "a"),
        ("a/x.png", "./a//x.png"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_one_name_are_refused(pack: type, one: str, other: str) -> None:
    with pytest.raises(ValueError, match=r"are one name"):
        unpack(pack((one, b"1"), (other, b"2")), Path("out"))


@pytest.mark.parametrize("name", ["a/\x1b[31m.png", "a\nb.png", "a" * 300, "/".join("a" * 40), "\u00e9" * 200])
def test_names_that_harm_terminals_or_file_systems_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"(control characters|too long or too deep)"):
        unpack(zip_of((name, b"1")), Path("out"))


def test_an_encrypted_member_is_refused_by_name() -> None:
    data = bytearray(zip_of(("train/a.png", b"1")).read_bytes())
    data[6] |= 1  # general purpose flag, local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    Path("a.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"'train/a.png' is encrypted; unpack it yourself"):
        unpack(Path("a.zip"), Path("out"))


def test_a_ratio_bomb_is_stopped_by_the_bytes_that_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SMALL", 1 << 20)
    for archive in (
        zip_of(("a/x.png", bytes(20 << 20))),
        tar_of(("a/x.png", bytes(20 << 20)), path="a.tgz", mode="w:gz"),
    ):
        limit = max(1 << 20, 100 * archive.stat().st_size)
        with pytest.raises(ValueError, match=rf"unpacks to more than {limit} bytes"):
            unpack(archive, Path(f"out-{archive.suffix}"))
        written = sum(path.stat().st_size for path in Path(f"out-{archive.suffix}").rglob("*") if path.is_file())
        assert written <= limit


def test_the_total_is_bounded_over_all_members() -> None:
    archive = zip_of(*((f"a/{number}.png", bytes(1000)) for number in range(20)))
    with pytest.raises(ValueError, match=r"more than 15000 bytes"):
        unpacked(archive, max_bytes=15_000)


def test_a_size_that_lies_in_a_zip_header_does_not_matter() -> None:
    data = bytearray(zip_of(("a/x.png", bytes(100_000))).read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (10).to_bytes(4, "little")
    Path("a.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"not a readable zip"):
        unpack(Path("a.zip"), Path("out"))
    assert (Path("out") / "a/x.png").stat().st_size <= 100


def test_a_tar_header_that_claims_gigabytes_is_not_read_into_memory() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    with gzip.open("a.tgz", "wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT if info.size < 8 << 30 else tarfile.GNU_FORMAT) + bytes(10_000))
    with pytest.raises(ValueError, match=r"a header claims 8589934592 bytes"):
        unpack(Path("a.tgz"), Path("out"))


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_members_are_counted(pack: type) -> None:
    archive = pack(*((f"a/{number}.png", b"") for number in range(11)))
    with pytest.raises(ValueError, match=r"more than 10 members"):
        unpacked(archive, max_members=10)


def test_a_thousand_tiny_members_are_unpacked() -> None:
    archive = tar_of(*((f"a/{number}.png", b"1") for number in range(1000)))
    assert len(unpacked(archive)) == 1000


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_what_macos_and_windows_leave_behind_is_skipped(pack: type) -> None:
    junk = ["__MACOSX/a/._x.png", ".DS_Store", "a/.DS_Store", "a/Thumbs.db", "a/._x.png", "a/desktop.ini"]
    assert unpacked(pack(("a/x.png", b"1"), *((name, b"junk") for name in junk))) == {"a/x.png": b"1"}


def test_names_in_other_encodings_are_kept_apart_and_readable() -> None:
    names = [b"a/caf\x82.png", "a/\u98df.png".encode(), b"a/\xff\xfe.png"]  # code page 437, UTF-8 undeclared, neither
    with tarfile.open("a.tar", "w", encoding="utf-8", errors="surrogateescape", format=tarfile.GNU_FORMAT) as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name.decode("utf-8", "surrogateescape")))
    data = bytes(zip_of(*((f"a/{number * 5}.png", b"") for number in "123")).read_bytes())
    for number, name in zip("123", names, strict=True):
        stem = name[2:-4]
        data = data.replace(f"a/{number * 5}.png".encode(), b"a/" + stem + b"_" * (5 - len(stem)) + b".png")
    Path("a.zip").write_bytes(data)
    expected = {"a/caf\u00e9.png", "a/\u98df.png", "a/\u00a0\u25a0.png"}
    assert set(unpacked(Path("a.tar"))) == expected
    unpack(Path("a.zip"), Path("zip"))
    assert {path.name.replace("_", "") for path in Path("zip/a").iterdir()} == {name[2:] for name in expected}


@pytest.mark.parametrize(
    "content", [b"", b"not an archive at all", b"PK\x03\x04" + bytes(100), b"\x1f\x8b" + bytes(50)]
)
def test_what_is_no_archive_is_said_to_be_none(content: bytes) -> None:
    Path("a.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.zip: (not a readable zip or tar|empty file)"):
        unpack(Path("a.zip"), Path("out"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_cut_anywhere_is_noticed(mode: str) -> None:
    whole = tar_of(("a/x.png", bytes(2000)), ("a/y.png", bytes(1024)), mode=mode).read_bytes()
    end = 512 + 2048 + 512 + 1024 if mode == "w" else len(whole) - 1
    for number, size in enumerate(
        sorted({*range(1, end, max(1, end // 40)), 512, 512 + 2048, end} & set(range(end + 1)))
    ):
        Path("cut.tar").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"not a readable zip or tar"):
            unpack(Path("cut.tar"), Path(f"cut-{number}"))


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_a_mutated_archive_is_read_or_refused_but_nothing_else(pack: type) -> None:
    whole = pack(("hotdog/x.png", random.Random(1).randbytes(900)), ("not-hotdog/y.png", b"y" * 700)).read_bytes()
    rng = random.Random(2)
    for number in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        Path("m.bin").write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(1, len(data))])])
        with suppress(ValueError):
            unpack(Path("m.bin"), Path(f"m/{number}"))
    assert outside() == {"a.zip" if pack is zip_of else "a.tar", "m.bin", "m"}
