"""Ask a server for a URL: redirects followed, secrets kept, every fault told apart."""

import http.client
import queue
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from masking import masked
from stages.download.addresses import request_parts
from stages.shared.cli import TransientError

RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Patience:
    """The time that a server may take. A transfer slower than `min_rate` over `window_seconds` is given up."""

    headers_seconds: float = 60.0  # name lookup, connection, redirects and headers together
    silence_seconds: float = 30.0  # without a single byte
    window_seconds: float = 60.0
    min_rate: float = 1024.0  # bytes/s
    max_bytes: int = 256 << 30


DEFAULT_PATIENCE = Patience()


def open_url(url: str, headers: dict[str, str], unreachable: str, patience: Patience) -> Any:
    """Send the request; the response has status 200, or 206 or 416 where `headers` asks for a range."""
    bare, authorization = request_parts(url)
    request = urllib.request.Request(
        bare, headers={"User-Agent": "stages.download", "Accept-Encoding": "identity", **headers}
    )
    for name, value in authorization.items():
        request.add_unredirected_header(name, value)  # a redirect to another host must not carry it along
    try:
        response = _within(patience.headers_seconds, lambda: _opener().open(request, timeout=patience.silence_seconds))
    except urllib.error.HTTPError as error:
        response = error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable_error(error, url, unreachable) from None
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise ValueError(f"{masked(url)}: redirected from https to http; name the file's final address")
    if response.status == 200 or (headers and response.status in (206, 416)):
        return response
    response.close()
    raise _status_error(response.status, url)


def _opener() -> urllib.request.OpenerDirector:
    """Only http and https, redirects and proxies: urllib's default opener would also follow a redirect to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """`call()`, or TimeoutError: a socket's own timeout bounds neither name lookup nor headers that drip."""
    outcome: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(1)

    def work() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def _status_error(status: int, url: str) -> Exception:
    name = f"{status} {HTTPStatus(status).phrase}" if status in list(HTTPStatus) else str(status)
    if status in RETRIED_STATUSES:
        return TransientError(f"{masked(url)}: the server answered {name}; run download again later")
    return ValueError(f"{masked(url)}: the server answered {name}; check the address and the right to read it")


def _unreachable_error(error: Exception, url: str, unreachable: str) -> Exception:
    """Tell what is worth retrying from what is not. Messages of http.client may hold the URL: only their kind is shown."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ValueError(f"{masked(url)}: its certificate is not trusted ({reason.verify_message}); {unreachable}")
    if isinstance(reason, str):  # urllib's own refusals: an unknown scheme behind a redirect, no host
        return ValueError(
            f"{masked(url)}: redirected to an address that is neither http nor https; name the final address"
        )
    shown = type(reason).__name__ if isinstance(reason, http.client.HTTPException) else str(reason)
    return TransientError(f"{masked(url)}: cannot reach the server: {shown}; {unreachable}")
