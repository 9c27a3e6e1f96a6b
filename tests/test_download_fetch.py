"""Network faults: each one against a server that commits it."""

import hashlib
import http.client
import random
import socket
import ssl
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masking import masked
from stages.download import request
from stages.download.addresses import basename, checked, mirrored
from stages.download.fetch import fetch
from stages.download.request import Patience
from stages.shared.cli import TransientError
from tests.misbehaving_server import MisbehavingServer, misbehaving_server

BODY = random.Random(0).randbytes(300_000)
SHA1 = f"sha1:{hashlib.sha1(BODY).hexdigest()}"
CACHE = Path(".cache/download")
SHORT = Patience(headers_seconds=1.0, silence_seconds=0.3, window_seconds=0.3)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with misbehaving_server() as server:
        server.body = BODY
        yield server


def get(server: MisbehavingServer, checksum: str | None = SHA1, **options: Any) -> Path:
    url = options.pop("url", f"{server.base}/hotdog.zip")
    return fetch(url, checksum=checksum, key="dataset.source", cache=CACHE, patience=SHORT, **options)


def leftovers() -> list[str]:
    return sorted(path.name for path in CACHE.glob("*"))


def test_a_verified_file_is_not_downloaded_twice(server: MisbehavingServer) -> None:
    path = get(server)
    assert path.read_bytes() == BODY
    assert get(server) == path
    assert len(server.requests) == 1
    assert leftovers() == [path.name]


def test_a_cached_file_that_was_damaged_is_downloaded_again(server: MisbehavingServer) -> None:
    path = get(server)
    path.write_bytes(BODY[:-1] + b"?")
    assert get(server).read_bytes() == BODY
    assert len(server.requests) == 2


def test_an_unverified_file_is_downloaded_each_time(server: MisbehavingServer) -> None:
    get(server, checksum=None)
    server.body = b"changed" * 100
    assert get(server, checksum=None).read_bytes() == server.body


def test_refused_connection_names_host_and_mirror(server: MisbehavingServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://localhost:{taken.getsockname()[1]}/hotdog.zip"
        with pytest.raises(
            TransientError, match=r"cannot reach localhost, set .*MIRROR_BASE .*hotdog\.zip, or dataset\.source"
        ):
            get(server, url=url)
        with pytest.raises(TransientError, match=r"host localhost comes from the environment variable MIRROR_BASE"):
            get(server, mirror=url.removesuffix("/hotdog.zip"))


@pytest.mark.parametrize("checksum", [SHA1, None])
@pytest.mark.parametrize("fault", ["reset", "cut", "silent", "drip"])
def test_a_broken_transfer_is_retryable_and_resumed(
    server: MisbehavingServer, fault: str, checksum: str | None
) -> None:
    server.faults = [fault]
    with pytest.raises(TransientError, match=r"run download again"):
        get(server, checksum)
    (part,) = CACHE.glob("*.part")
    have = part.stat().st_size
    assert have > 0
    assert BODY.startswith(part.read_bytes())
    path = get(server, checksum)
    assert path.read_bytes() == BODY
    assert server.ranges() == [None, f"bytes={have}-"]
    assert leftovers() == [path.name]


def test_a_transfer_broken_many_times_still_arrives(server: MisbehavingServer) -> None:
    server.faults = ["cut", "reset", "cut", "silent", "cut"]
    for _ in range(5):
        with pytest.raises(TransientError):
            get(server)
    assert get(server).read_bytes() == BODY


@pytest.mark.parametrize("fault", ["no-ranges", "416", "other-range"])
def test_a_server_that_cannot_resume_gives_the_whole_file(server: MisbehavingServer, fault: str) -> None:
    server.faults = ["cut", fault]
    with pytest.raises(TransientError):
        get(server, checksum=None)
    assert get(server, checksum=None).read_bytes() == BODY


@pytest.mark.parametrize("fault", ["", "mixed-range"])
@pytest.mark.parametrize("size", [300_000, 200_000, 120_000])
def test_a_file_that_changed_between_parts_is_not_mixed(server: MisbehavingServer, fault: str, size: int) -> None:
    server.faults = ["cut", fault]
    with pytest.raises(TransientError):
        get(server, checksum=None)
    server.body = random.Random(1).randbytes(size)
    assert get(server, checksum=None).read_bytes() == server.body


def test_without_a_validator_it_starts_over(server: MisbehavingServer) -> None:
    server.faults = ["no-validator"]
    with pytest.raises(TransientError):
        get(server)
    assert get(server).read_bytes() == BODY
    assert server.ranges() == [None, None]


def test_a_part_whose_bytes_rotted_is_downloaded_anew(server: MisbehavingServer) -> None:
    server.faults = ["cut"]
    with pytest.raises(TransientError):
        get(server)
    (part,) = CACHE.glob("*.part")
    part.write_bytes(bytes(part.stat().st_size))  # as after a power cut: the size is there, the bytes are not
    assert get(server).read_bytes() == BODY


@pytest.mark.parametrize("notes", ["", "{", "[]", "null", '{"url": 3}'])
def test_damaged_notes_beside_a_part_mean_starting_over(server: MisbehavingServer, notes: str) -> None:
    server.faults = ["cut"]
    with pytest.raises(TransientError):
        get(server)
    next(CACHE.glob("*.part.json")).write_text(notes)
    assert get(server).read_bytes() == BODY
    assert server.ranges() == [None, None]


def test_a_part_that_was_complete_is_only_verified(server: MisbehavingServer) -> None:
    server.faults = ["cut"]
    with pytest.raises(TransientError):
        get(server)
    next(CACHE.glob("*.part")).write_bytes(BODY)
    assert get(server).read_bytes() == BODY
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["401", "403", "404", "410", "204"])
def test_a_final_refusal_is_permanent(server: MisbehavingServer, status: str) -> None:
    server.faults = [status]
    with pytest.raises(ValueError, match=rf"hotdog.zip: the server answered {status} .*; check the address"):
        get(server)


@pytest.mark.parametrize("status", ["408", "429", "500", "503"])
def test_a_passing_refusal_is_retryable(server: MisbehavingServer, status: str) -> None:
    server.faults = [status]
    with pytest.raises(TransientError, match=rf"the server answered {status}"):
        get(server)


def test_headers_that_drip_are_given_up(server: MisbehavingServer) -> None:
    server.faults = ["drip-headers"]
    with pytest.raises(TransientError, match=r"no answer within 1 s"):
        get(server)


def test_a_cut_chunked_answer_is_noticed(server: MisbehavingServer) -> None:
    server.faults = ["cut-chunks"]
    with pytest.raises(TransientError, match=r"broken off"):
        get(server, checksum=None)


def test_a_body_shorter_than_stated_is_retryable(server: MisbehavingServer) -> None:
    server.faults = ["longer"]
    with pytest.raises(TransientError, match=r"cut off after 300000 of 300100 bytes"):
        get(server)


def test_a_body_longer_than_stated_fails_its_checksum(server: MisbehavingServer) -> None:
    server.faults = ["shorter"]
    with pytest.raises(ValueError, match=r"sha1 [0-9a-f]{40}, expected"):
        get(server)
    assert leftovers() == []


def test_a_wrong_checksum_leaves_nothing_behind(server: MisbehavingServer) -> None:
    with pytest.raises(
        ValueError, match=rf"hotdog.zip: sha1 {SHA1[5:]}, expected {'0' * 40}; .* end dataset.source with #sha1="
    ):
        get(server, checksum=f"sha1:{'0' * 40}")
    assert leftovers() == []


def test_an_abbreviated_checksum_is_refused_before_any_request(server: MisbehavingServer) -> None:
    with pytest.raises(ValueError, match=r"dataset.source: a sha1 digest has 40 digits, found 8"):
        get(server, checksum=SHA1[:13])
    assert server.requests == []


@pytest.mark.parametrize("checksum", [SHA1, None])
def test_a_web_page_instead_of_a_file_is_called_so(server: MisbehavingServer, checksum: str | None) -> None:
    server.faults = ["html"]
    with pytest.raises(ValueError, match=r"web page instead of a file .* set dataset.source"):
        get(server, checksum)
    assert leftovers() == []


def test_a_redirect_is_followed_without_credentials(server: MisbehavingServer) -> None:
    server.faults = [f"redirect:{server.base}/elsewhere?sig=1"]
    url = server.base.replace("http://", "http://ann:secret@") + "/hotdog.zip"
    assert get(server, url=url).read_bytes() == BODY
    assert ["authorization" in headers for _, headers in server.requests] == [True, False]
    assert server.requests[0][1]["authorization"] == "Basic YW5uOnNlY3JldA=="


@pytest.mark.parametrize(
    "target", ["ftp://127.0.0.1/x?token=SECRET", "file:///etc/passwd?SECRET", "http://u:SECRET@/x"]
)
def test_a_redirect_elsewhere_is_refused(server: MisbehavingServer, target: str) -> None:
    server.faults = [f"redirect:{target}"]
    with pytest.raises((ValueError, TransientError)) as caught:
        get(server)
    assert "SECRET" not in str(caught.value)
    assert "passwd" not in str(caught.value)


UNTRUSTED = ssl.SSLCertVerificationError("self-signed")
UNTRUSTED.verify_message = "self-signed certificate"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            urllib.error.URLError(UNTRUSTED),
            ValueError,
            r"its certificate is not trusted \(self-signed certificate\); set MIRROR_BASE",
        ),
        (urllib.error.URLError(OSError(111, "Connection refused")), TransientError, "cannot reach the server"),
        (http.client.BadStatusLine("TOPSECRET"), TransientError, "cannot reach the server: BadStatusLine"),
    ],
)
def test_a_server_that_cannot_be_trusted_or_reached_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    class Opener:
        def open(self, *_: object, **__: object) -> None:
            raise error

    monkeypatch.setattr(request, "_opener", Opener)
    with pytest.raises(kind, match=message) as caught:
        request.open_url("https://u:TOPSECRET@host/a.zip?TOPSECRET", {}, "set MIRROR_BASE", SHORT)
    assert "TOPSECRET" not in str(caught.value)


def test_a_redirect_from_https_to_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Response:
        url, status, closed = "http://host/a.zip", 200, False

        def close(self) -> None:
            self.closed = True

    class Opener:
        def open(self, *_: object, **__: object) -> Response:
            return response

    response = Response()
    monkeypatch.setattr(request, "_opener", Opener)
    with pytest.raises(ValueError, match=r"https://host/a\.zip: redirected from https to http"):
        request.open_url("https://host/a.zip", {}, "set MIRROR_BASE", SHORT)
    assert response.closed


def test_a_redirect_loop_ends(server: MisbehavingServer) -> None:
    server.faults = [f"redirect:{server.base}/hotdog.zip"] * 50
    with pytest.raises(ValueError, match=r"302 Found"):
        get(server)


def test_an_endless_body_is_bounded(server: MisbehavingServer) -> None:
    with pytest.raises(ValueError, match=r"larger than 1000 bytes"):
        fetch(f"{server.base}/x", checksum=None, key="dataset.source", cache=CACHE, patience=Patience(max_bytes=1000))


def test_a_mirror_serves_the_file_under_its_name(server: MisbehavingServer) -> None:
    path = get(server, url="http://nowhere.invalid/a/b/hotdog.zip?x=1", mirror=f"{server.base}/pub/?key=5")
    assert path.read_bytes() == BODY
    assert server.requests[0][0] == "/pub/hotdog.zip?key=5"
    assert get(server, url="http://nowhere.invalid/a/b/hotdog.zip?x=1") == path  # the mirror's file is the original's


def test_no_message_or_log_shows_a_secret(server: MisbehavingServer, capfd: pytest.CaptureFixture[str]) -> None:
    url = server.base.replace("http://", "http://ann:TOPSECRET@") + "/hotdog.zip?token=TOPSECRET&TOPSECRET"
    server.faults = ["404", "503", "reset", "silent", "cut", "html", "shorter"]
    for _ in range(7):
        with pytest.raises((ValueError, TransientError)) as caught:
            get(server, url=url)
        assert "TOPSECRET" not in str(caught.value)
        assert "***" in str(caught.value)
    get(server, url=url, checksum=None)
    assert "TOPSECRET" not in "".join(capfd.readouterr())
    assert not [path for path in CACHE.rglob("*") if "TOPSECRET" in path.name]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("s3://bucket/x.zip", "scheme s3:// is not supported"),
        ("file:///x.zip", "scheme file:// is not supported"),
        ("http://", "names no host"),
        ("http:///x.zip", "names no host"),
        ("http://u:SECRET@host:SECRET/x", "host or port is malformed"),
        ("http://[bad/x", "host or port is malformed"),
        ("http://a b/x", "names no host"),
    ],
)
def test_an_unusable_url_names_the_key(url: str, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^dataset.source: .*{found}") as caught:
        checked(url, key="dataset.source")
    assert "SECRET" not in str(caught.value)


def test_odd_characters_in_urls_are_encoded() -> None:
    assert checked("HTTP://Host/a b/ü%20.zip?q=é", key="k") == "http://host/a%20b/%C3%BC%20.zip?q=%C3%A9"
    assert checked("http://bücher.example:81/x", key="k") == "http://xn--bcher-kva.example:81/x"
    assert basename("http://h/a%2F..%2Fb/.x y.zip?z#f") == "x_y.zip"
    assert basename("http://h/") == "download"
    assert mirrored("https://h/a/b.zip?secret=1", "http://u:p@m:80/base/") == "http://u:p@m:80/base/b.zip"
    assert masked("http://u:p@h/x?a=1&b") == "http://***@h/x?***"
    assert masked("../some?path=1") == "../some?path=1"
