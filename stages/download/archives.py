"""The members of zip and tar files, as names and streams. Sizes that an archive declares are not trusted, only the bytes that come out."""

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 20  # bytes
MAX_HEADER_BYTES = 4 << 20  # of one tar header or extended name; a real one has a few kB
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
READING_FAULTS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError),
    *(
        RuntimeError,
        UnicodeError,
        IndexError,
        KeyError,
        OverflowError,
        ArithmeticError,
        AssertionError,
        MemoryError,
        struct.error,
    ),
)


@dataclass(frozen=True)
class Member:
    """A regular file's name as stored and its bytes, or a folder's name and None."""

    name: str
    chunks: Iterator[bytes] | None


def members(archive: Path, *, max_members: int, max_bytes: int) -> Iterator[Member]:
    """Every file and folder of a zip or (compressed) tar, in its order. Take a member's chunks before the next one.

    Raises ValueError for anything that is neither file nor folder, encrypted, damaged, or above a bound.
    """
    if not archive.stat().st_size:
        raise ValueError(f"{archive}: empty file; expected a zip or tar archive")
    read = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        for number, member in enumerate(read(archive, max_bytes)):
            if number >= max_members:
                raise ValueError(f"{archive}: more than {max_members} members; split it or give a folder instead")
            yield member
    except READING_FAULTS as error:
        raise _damaged(archive, error) from None


def _zip_members(archive: Path, max_bytes: int) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            _refuse_special_zip(archive, info)
            yield Member(_zip_name(info), None if info.is_dir() else _guarded(archive, file.open(info)))


def _zip_name(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 0x800 or not _in_cp437(info.filename):  # declared UTF-8, by flag or by an extra field
        return info.filename
    return _reread(info.filename.encode("cp437"))


def _refuse_special_zip(archive: Path, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, masked headers
        raise ValueError(f"{archive}: {info.filename!r} is encrypted; unpack it yourself and name the folder instead")
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0  # 3: written on Unix
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{archive}: {info.filename!r} is a link or a device; only files and folders are unpacked")


def _tar_members(archive: Path, max_bytes: int) -> Iterator[Member]:
    with archive.open("rb") as raw:
        start = raw.read(6)
    opener: Any = next((opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic)), open)
    with opener(archive, "rb") as plain:
        bounded = _Bounded(plain, archive, max_bytes)
        file = tarfile.open(fileobj=bounded, mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
        for info in file:
            name = _reread(info.name.encode("utf-8", "surrogateescape"))
            if not (info.isdir() or info.isreg()) or info.issparse():
                raise ValueError(f"{archive}: {name!r} is a link or a device; only files and folders are unpacked")
            stream = None if info.isdir() else file.extractfile(info)
            yield Member(name, None if stream is None else _guarded(archive, stream))
            file.members.clear()  # tarfile would keep a record of every member
        if bounded.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header, or none, for the end
            raise tarfile.ReadError("it ends without its end mark")
        bounded.read_on()


class _Bounded:
    """A tar's decompressed bytes for tarfile: it reads headers whole, and skips by reading, as far as they say."""

    def __init__(self, file: IO[bytes], archive: Path, max_bytes: int) -> None:
        self.file, self.archive, self.max_bytes = file, archive, max_bytes
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"{self.archive}: a header claims {size} bytes; make the archive anew")
        self.last = self.file.read(size)
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position > self.max_bytes:
            raise ValueError(f"{self.archive}: unpacks to more than {self.max_bytes} bytes; give a folder instead")
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()

    def read_on(self) -> None:
        """Read to the end, where a compressed file's own checksum stands."""
        while self.file.read(CHUNK):
            self.seek(self.file.tell())


def _guarded(archive: Path, stream: IO[bytes]) -> Iterator[bytes]:
    """The stream's bytes; a fault in reading them is the archive's, unlike one in writing them (a full disk)."""
    try:
        with stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except READING_FAULTS as error:
        raise _damaged(archive, error) from None


def _damaged(archive: Path, error: BaseException) -> ValueError:
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ValueError(f"{archive}: not a readable zip or tar archive ({reason}); download or make it again")


def _reread(name: bytes) -> str:
    """A name without a declared encoding: UTF-8 where it is valid, else code page 437, which has every byte."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437")


def _in_cp437(name: str) -> bool:
    try:
        name.encode("cp437")
    except UnicodeEncodeError:
        return False
    return True
