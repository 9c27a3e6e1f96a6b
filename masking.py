"""Mask what may be secret in URLs, for stages and flows alike."""

import re

HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?\W*")  # with a port at most, and what a sentence may put behind it


def masked(text: str) -> str:
    """Return `text` with the user, password and query of every URL in it replaced by `***`.

    Where a URL could be read in two ways (a `?` or `/` in a password that should have been escaped), the way that shows
    less is taken.
    """
    return re.sub(r"([A-Za-z][A-Za-z0-9+.-]*://)(\S+)", lambda url: url[1] + _public(url[2]), text)


def _public(rest: str) -> str:
    """rest: a URL without its scheme."""
    authority = rest.partition("/")[0]
    is_path = "@" not in authority and ":" not in authority  # an @ further on belongs to a file's name
    userinfo, at, address = ("", "", rest) if is_path else rest.rpartition("@")
    address, query, _ = address.partition("?")
    if "?" in userinfo or not HOST.fullmatch(address.partition("/")[0]):  # a piece of a password, perhaps
        return "***"
    return f"{'***@' if at else ''}{address}{'?***' if query else ''}"
