"""`algorithm:digest`, written `#algorithm=digest` behind a source, and the one place that compares it with a file."""

import hashlib
import re
from pathlib import Path

from stages.shared.files import file_digest


def split_checksum(source: str) -> tuple[str, str | None]:
    """`address#sha1=digest` as (address, `sha1:digest`), as pip writes it; a source without a digest as (source, None)."""
    found = re.fullmatch(r"(.+)#(md5|sha1|sha256|sha512)=([0-9a-fA-F]+)", source)
    return (found[1], f"{found[2]}:{found[3].lower()}") if found else (source, None)


def matches(path: Path, checksum: str, *, prefix: bool = False) -> bool:
    """True where `path` has this digest; with `prefix` the checksum may be its first digits, as torchvision's is."""
    algorithm, _, expected = checksum.partition(":")
    found = file_digest(path, algorithm)
    return found.startswith(expected.lower()) if prefix else found == expected.lower()


def check_form(checksum: str, *, key: str) -> None:
    """Raises ValueError where the digest is not as long as its algorithm's."""
    algorithm, _, digits = checksum.partition(":")
    length = hashlib.new(algorithm).digest_size * 2
    if len(digits) != length:
        raise ValueError(f"{key}: a {algorithm} digest has {length} digits, found {len(digits)}; give it in full")


def check(path: Path, checksum: str, *, key: str, shown: str, prefix: bool = False) -> None:
    """Raises ValueError with the digest found and the one expected."""
    if not prefix:
        check_form(checksum, key=key)
    if not matches(path, checksum, prefix=prefix):
        algorithm, _, expected = checksum.partition(":")
        found = file_digest(path, algorithm)
        advice = f"get the file anew, or if it is the one you want end {key} with #{algorithm}={found}"
        raise ValueError(f"{shown}: {algorithm} {found}, expected {expected}; {advice}")
