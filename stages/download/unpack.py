"""Archives into a folder: no path leaves it, no file is written twice, and the size is bounded by what arrives."""

import re
import unicodedata
from pathlib import Path

from tqdm import tqdm

from stages.download.archives import members

MAX_MEMBERS = 500_000
MAX_BYTES = 64 << 30  # 64 GiB in all
MAX_RATIO = 100  # unpacked to packed; photos are near 1
SMALL = 64 << 20  # below 64 MiB the ratio does not matter: no harm is done
MAX_DEPTH = 32
MAX_NAME_BYTES = 255  # of one part of a path, as file systems have it
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")


def unpack(
    archive: Path,
    target: Path,
    *,
    max_members: int = MAX_MEMBERS,
    max_bytes: int = MAX_BYTES,
    max_ratio: int = MAX_RATIO,
) -> None:
    """Unpack a zip or tar into the new folder `target`, without what macOS and Windows leave in archives.

    Raises ValueError naming the archive and the member: see `safe_path`, `Names` and `archives.members`.
    """
    limit = min(max_bytes, max(SMALL, max_ratio * archive.stat().st_size))
    target.mkdir(parents=True)
    names, num_bytes = Names(archive), 0
    with tqdm(desc=f"unpack {archive.name}", unit=" files", disable=None) as bar:
        for member in members(archive, max_members=max_members, max_bytes=2 * limit):
            path = safe_path(member.name, archive=archive)
            if is_junk(path):
                continue
            if member.chunks is None:
                names.add_folder(path)
                (target / path).mkdir(parents=True, exist_ok=True)
                continue
            names.add_file(path)
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with (target / path).open("xb") as file:
                for chunk in member.chunks:
                    num_bytes += len(chunk)
                    if num_bytes > limit:
                        raise ValueError(f"{archive}: unpacks to more than {limit} bytes; give a folder instead")
                    file.write(chunk)
            bar.update()


def safe_path(name: str, *, archive: Path) -> Path:
    """A member's name as a relative path in normal form (NFC); `\\` separates too, as some Windows tools write it.

    Raises ValueError for an absolute path, a drive, `..`, control characters, and names no file system takes.
    """
    parts = [part for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise ValueError(
            f"{archive}: {name!r} is an absolute path; nothing was unpacked from it; do not trust this archive"
        )
    if ".." in parts:
        raise ValueError(
            f"{archive}: {name!r} leaves the folder; nothing was unpacked from it; do not trust this archive"
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"{archive}: the name {name!r} has control characters; rename the file and pack again")
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise ValueError(f"{archive}: the name {name[:80]!r}… is too long or too deep; rename the file and pack again")
    return Path(*parts)


def is_junk(path: Path) -> bool:
    """True for what macOS and Windows leave beside files: never part of a dataset."""
    return any(part in JUNK or part.startswith("._") for part in path.parts)


class Names:
    """The names seen so far. Two that some file system takes for one (by case, say) are refused."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.spelled: dict[str, Path] = {}
        self.files: set[str] = set()

    def add_file(self, path: Path) -> None:
        if _folded(path) in self.spelled or not path.parts:
            raise self._twice(path, self.spelled.get(_folded(path), path))
        self.add_folder(path.parent)
        self.spelled[_folded(path)] = path
        self.files.add(_folded(path))

    def add_folder(self, path: Path) -> None:
        for folder in (path, *path.parents):
            earlier = self.spelled.setdefault(_folded(folder), folder)
            if earlier != folder or _folded(folder) in self.files:
                raise self._twice(folder, earlier)

    def _twice(self, path: Path, earlier: Path) -> ValueError:
        return ValueError(f"{self.archive}: {str(path)!r} and {str(earlier)!r} are one name; rename one and pack again")


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", path.as_posix().casefold())
