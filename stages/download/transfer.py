"""One URL into one `.part` file over HTTP: resumable, never waiting without end."""

import http.client
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from masking import masked
from stages.download.addresses import fingerprint
from stages.download.request import Patience, open_url
from stages.shared.cli import TransientError
from stages.shared.files import path_in_errors, read_json, write_json

CHUNK = 1 << 16  # bytes


def transfer(url: str, part: Path, *, resume: bool, verified: bool, unreachable: str, patience: Patience) -> bool:
    """Bring `url`'s bytes to `part`; returns whether bytes of an earlier run were kept.

    Earlier bytes are kept only where the server vouches that they belong to the same file: a range answered with
    the ETag or Last-Modified noted beside the part (RFC 9110, 13.1.5). Otherwise it starts over. Where no checksum will
    have the file `verified`, only those that were flushed to the disk are kept: others may be zeros after a power cut.
    Raises TransientError (`part` stays for the next run) or ValueError.
    """
    notes = _notes(part, url, verified) if resume else None
    if notes is not None and part.stat().st_size == notes["total"]:
        return True
    with open_url(url, _range_headers(part, notes), unreachable, patience) as response:
        continued = notes is not None and response.status == 206 and _continues(response, part, notes)
        if response.status == 200:
            notes = _start(response, part, url)
        elif not continued:
            return transfer(url, part, resume=False, verified=verified, unreachable=unreachable, patience=patience)
        assert notes is not None
        _receive(response, part, url, notes, patience)
    return continued


def forget(part: Path) -> None:
    """Remove a partial download and the notes beside it."""
    part.unlink(missing_ok=True)
    _notes_path(part).unlink(missing_ok=True)


def _notes_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _notes(part: Path, url: str, verified: bool) -> dict[str, Any] | None:
    try:
        notes = read_json(_notes_path(part))
        if not verified:
            os.truncate(part, min(part.stat().st_size, notes["flushed"]))
        usable = part.stat().st_size > 0 and notes["url"] == fingerprint(url) and notes["validator"]
        return notes if usable and {"total"} < notes.keys() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _start(response: Any, part: Path, url: str) -> dict[str, Any]:
    """Forget earlier bytes and note what the server says of the file, before its first byte is kept."""
    forget(part)
    length = response.headers.get("Content-Length", "")
    total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    notes = {"url": fingerprint(url), "validator": _validator(response), "total": total}
    write_json(_notes_path(part), notes)
    return notes


def _validator(response: Any) -> str | None:
    etag = response.headers.get("ETag", "")
    # A weak ETag does not vouch for bytes.
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _range_headers(part: Path, notes: dict[str, Any] | None) -> dict[str, str]:
    return {} if notes is None else {"Range": f"bytes={part.stat().st_size}-", "If-Range": notes["validator"]}


def _continues(response: Any, part: Path, notes: dict[str, Any]) -> bool:
    span = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)", response.headers.get("Content-Range", ""))
    if span is None:
        return False
    first, last, total = (int(number) for number in span.groups())
    same = _validator(response) in (None, notes["validator"]) and notes["total"] in (None, total)
    return same and first == part.stat().st_size and last == total - 1


def _receive(response: Any, part: Path, url: str, notes: dict[str, Any], patience: Patience) -> None:
    size, total = part.stat().st_size if part.exists() else 0, notes["total"]
    with (
        path_in_errors(part),
        part.open("ab") as file,
        tqdm(desc=part.stem, initial=size, total=total, unit="B", unit_scale=True, disable=None) as bar,
    ):
        try:
            for chunk in _chunks(response, url, patience):
                size += len(chunk)
                if size > patience.max_bytes:
                    raise ValueError(
                        f"{masked(url)}: larger than {patience.max_bytes} bytes, the most that is downloaded"
                    )
                file.write(chunk)
                bar.update(len(chunk))
        finally:
            file.flush()
            os.fsync(file.fileno())
            write_json(_notes_path(part), {**notes, "flushed": file.tell()})
    if total is not None and size < total:
        raise TransientError(f"{masked(url)}: cut off after {size} of {total} bytes; run download again to go on")


def _chunks(response: Any, url: str, patience: Patience) -> Iterator[bytes]:
    """The body as it arrives. Only network faults become TransientError here: a full disk is not one."""
    begun, received = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(CHUNK)
        except TimeoutError:
            raise TransientError(
                f"{masked(url)}: silent for {patience.silence_seconds:g} s; run download again"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(
                f"{masked(url)}: broken off ({type(error).__name__}); run download again to go on"
            ) from None
        if not chunk:
            return
        received += len(chunk)
        seconds = time.monotonic() - begun
        if seconds >= patience.window_seconds:
            if received < patience.min_rate * seconds:
                rate = f"{received / seconds:.0f} bytes/s, less than {patience.min_rate:g}"
                raise TransientError(f"{masked(url)}: {rate}; run download again to go on, or use a mirror")
            begun, received = time.monotonic(), 0
        yield chunk
