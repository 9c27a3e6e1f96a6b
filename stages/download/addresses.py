"""URLs as text: what they are, how they are shown, and where a mirror has them."""

import base64
import hashlib
import re
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from masking import masked


def is_url(source: str) -> bool:
    """`scheme://…`; anything else is a path or a name."""
    return re.match(r"^[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def checked(url: str, *, key: str) -> str:
    """`url` as it can be requested: http or https, with a host, every odd character percent-encoded.

    Raises ValueError naming `key`; its text never shows the user name, password or query.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{key}: the URL's host or port is malformed; write http(s)://host[:port]/path") from None
    if parts.scheme.lower() not in ("http", "https"):
        allowed = "allowed are http:// and https://, or a local path without a scheme"
        raise ValueError(f"{key}: {masked(url)}: the scheme {parts.scheme}:// is not supported; {allowed}")
    if not host or re.search(r"[\s\x00-\x1f\x7f]", host):
        raise ValueError(f"{key}: {masked(url)}: the URL names no host; write http(s)://host[:port]/path")
    netloc = host.encode("idna").decode("ascii") if not host.isascii() else host
    netloc = (f"[{netloc}]" if ":" in netloc else netloc) + (f":{port}" if port is not None else "")
    userinfo = parts.netloc.rpartition("@")[0]
    path, query = (quote(text, safe="/%:=&?~#+!$,;'@()*[]") for text in (parts.path or "/", parts.query))
    return urlunsplit((parts.scheme.lower(), f"{userinfo}@{netloc}" if userinfo else netloc, path, query, ""))


def basename(url: str) -> str:
    """The last part of the URL's path, safe as a file name; `download` where it has none."""
    name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[-100:] or "download"


def mirrored(url: str, mirror: str) -> str:
    """`{mirror}/{basename of url}`; the mirror's own credentials and query are kept."""
    base = urlsplit(mirror)
    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    return urlunsplit(base._replace(path=f"{base.path.rstrip('/')}/{name}"))


def request_parts(url: str) -> tuple[str, dict[str, str]]:
    """`url` without its user name and password, and the header that carries them instead."""
    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    bare = urlunsplit(parts._replace(netloc=host))
    if not userinfo:
        return bare, {}
    token = base64.b64encode(unquote(userinfo).encode()).decode("ascii")
    return bare, {"Authorization": f"Basic {token}"}


def fingerprint(url: str) -> str:
    """Tells two URLs apart without showing either."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]
