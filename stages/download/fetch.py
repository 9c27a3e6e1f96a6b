"""One URL as one verified file in the download cache."""

from pathlib import Path
from urllib.parse import urlsplit

from masking import masked
from stages.download import checksum as digests
from stages.download.addresses import basename, checked, fingerprint, mirrored
from stages.download.request import DEFAULT_PATIENCE, Patience
from stages.download.transfer import forget, transfer

HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")


def fetch(
    url: str,
    *,
    checksum: str | None,
    key: str,
    cache: Path,
    mirror: str | None = None,
    prefix: bool = False,
    patience: Patience = DEFAULT_PATIENCE,
) -> Path:
    """The file at `url` (at `{mirror}/{its name}` where a mirror is given), verified, in `cache`.

    checksum: `algorithm:digest`, with `prefix` its first digits; a cached file that has it is not downloaded again.
    key: the params key that named the URL, for messages.
    Raises TransientError for what may pass (the partial file stays and is resumed), ValueError for what will not.
    """
    url = checked(url, key=key)
    if checksum and not prefix:
        digests.check_form(checksum, key=key)
    path = cache / _cache_name(url, checksum)
    if checksum and path.exists() and digests.matches(path, checksum, prefix=prefix):
        print(f"{key}: {path} is already there and verified", flush=True)
        return path
    address = checked(mirrored(url, mirror), key="MIRROR_BASE") if mirror else url
    unreachable = _unreachable_advice(address, key, by_mirror=bool(mirror))
    print(f"{key}: downloading {masked(address)}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    verified = checksum is not None
    resumed = transfer(address, part, resume=True, verified=verified, unreachable=unreachable, patience=patience)
    if resumed and checksum and not digests.matches(part, checksum, prefix=prefix):
        print(f"{key}: the resumed file is not whole; downloading it anew", flush=True)
        transfer(address, part, resume=False, verified=verified, unreachable=unreachable, patience=patience)
    try:
        _verify(part, checksum, key=key, shown=masked(address), prefix=prefix)
    except ValueError:
        forget(part)
        raise
    part.replace(path)
    forget(part)
    return path


def _verify(part: Path, checksum: str | None, *, key: str, shown: str, prefix: bool) -> None:
    with part.open("rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(HTML_STARTS):
        advice = f"open it in a browser and set {key} to the file's own address"
        raise ValueError(f"{shown}: the server sent a web page instead of a file (a login or an error page?); {advice}")
    if checksum:
        digests.check(part, checksum, key=key, shown=shown, prefix=prefix)


def _cache_name(url: str, checksum: str | None) -> str:
    """By digest where one is known: then a mirror's file and the original share their place."""
    start = checksum.partition(":")[2][:16].lower() if checksum else f"url-{fingerprint(url)}"
    return f"{start}-{basename(url)}"


def _unreachable_advice(address: str, key: str, *, by_mirror: bool) -> str:
    host = urlsplit(address).hostname
    if by_mirror:
        return f"the host {host} comes from the environment variable MIRROR_BASE: correct it or unset it"
    wanted = f"set the environment variable MIRROR_BASE to an address that serves {basename(address)}"
    return f"if this machine cannot reach {host}, {wanted}, or {key} to a local path"
