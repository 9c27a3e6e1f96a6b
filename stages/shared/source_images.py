"""The source's images as a folder: as they lie, or, where they are so many that download packed them, unpacked for a while."""

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.shared.files import path_in_errors

PACKED = "images.tar"


def pack(images: Path) -> None:
    """Replace the folder by one tar beside it, the same bytes for the same files: DVC takes a second for a few thousand files."""
    with tarfile.open(images.with_name(PACKED), "w") as packed:
        for path in sorted(images.rglob("*")):
            packed.add(path, path.relative_to(images).as_posix(), recursive=False, filter=_without_circumstances)
    shutil.rmtree(images)


def _without_circumstances(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime = entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


@contextmanager
def source_images(dataset: Path, scratch: Path) -> Iterator[Path]:
    """The folder of the images in `dataset`; packed ones are unpacked into `scratch`, which is removed at the end."""
    if not (dataset / PACKED).exists():
        yield dataset / "images"
        return
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        with path_in_errors(scratch):
            _unpack(dataset / PACKED, scratch)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(packed: Path, folder: Path) -> None:
    try:
        with tarfile.open(packed, "r:") as files:
            files.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise ValueError(f"{packed}: not a whole tar ({error}); run download again") from None
