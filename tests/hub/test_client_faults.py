from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llamaconv.errors import NetworkError, UsageError
from llamaconv.hub.answers import Hiccup
from llamaconv.hub.client import Client
from llamaconv.hub.connections import Sockets
from tests.hub.clients import ASKED, BODY, HEAD, fetched, hiccup, opened
from tests.hub.scripted import Cut, Server, certificate, deaf_port, listening, reply, served


@pytest.mark.parametrize(
    ("answer", "reason", "wait"),
    [
        (reply(503, Retry_After="7"), "answered 503 (Service Unavailable)", 7.0),
        (reply(500), "answered 500 (Internal Server Error)", None),
        (reply(599), "answered 599", None),
        (reply(429, Retry_After="Sun, 06 Nov 1994 08:49:47 GMT"), "answered 429 (Too Many Requests)", 0.0),
        (reply(408), "answered 408 (Request Timeout)", None),
        (reply(202), "answered 202 (Accepted)", None),
        (reply(304), "answered 304 (Not Modified)", None),
        (Cut(HEAD + BODY[:1000], "close"), "closed the connection in mid-body", None),
        (Cut(HEAD + BODY[:1000], "reset"), "reset the connection", None),
        (Cut(HEAD + BODY[:1000], "stall"), "was silent for 0.3 s", None),
        (Cut(HEAD[:10], "stall"), "was silent for 0.3 s", None),
        (Cut(b"", "close"), "closed the connection without an answer", None),
        (Cut(b"", "reset"), "reset the connection", None),
        (Cut(b"SSH-2.0-OpenSSH\r\n\r\n", "close"), "did not answer in HTTP/1.1", None),
    ],
)
def test_hiccups(answer: bytes | Cut, reason: str, wait: float | None) -> None:
    """What another attempt may mend names the host, says what it was, and how long the server asks to wait."""
    with served(lambda _: answer) as server, opened(timeout=0.3) as client:
        fault = hiccup(client, server.url)
    assert (fault.reason, fault.retry_after) == (f"{server.host} {reason}", wait)


def test_a_compressed_answer() -> None:
    """Bytes that are not the file's own are not taken."""
    with served(lambda _: reply(200, b"x", Content_Encoding="gzip")) as server, opened() as client:
        reason = hiccup(client, server.url).reason
    assert reason == f"the answer of {server.host} came compressed though it was not asked for"


def test_what_came_before_a_hiccup_is_given() -> None:
    """The bytes that arrived before a connection broke reach the caller."""
    with (
        served(lambda _: Cut(HEAD + BODY[:1000], "close")) as server,
        opened() as client,
        client.get(server.url, "/file", ASKED) as answer,
    ):
        chunks = answer.chunks()
        assert next(chunks) == BODY[:1000]
        with pytest.raises(Hiccup):
            next(chunks)


def test_no_connection() -> None:
    """A port where nothing listens, a name that is none, and one that cannot be, are hiccups."""
    port = deaf_port()
    with opened() as client:
        assert hiccup(client, f"http://127.0.0.1:{port}").reason == (
            f"127.0.0.1:{port}: no connection (Connection refused)"
        )
        assert hiccup(client, "http://no.such.host.invalid").reason == "no.such.host.invalid: name resolution failed"
        label = "a" * 64
        assert hiccup(client, f"http://{label}.example").reason == f"{label}.example: no connection (UnicodeError)"


def test_a_limit_is_shorter_than_the_timeout() -> None:
    """A request waits no longer than its limit; what is left of a deadline may be nothing."""
    with served(lambda _: Cut(b"", "stall")) as server, opened(timeout=30) as client:
        for limit, shown in ((0.2, "0.2"), (0.0, "0.01"), (-5.0, "0.01")):
            with pytest.raises(Hiccup) as caught, client.get(server.url, "/", ASKED, limit=limit):
                pass
            assert caught.value.reason == f"{server.host} was silent for {shown} s"


def test_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    """It is no hiccup: the error names the host and the variable."""
    with (
        served(lambda _: reply(200), certificate(tmp_path)) as server,
        opened(token="hf_x") as client,
        pytest.raises(NetworkError) as caught,
    ):
        fetched(client, f"https://{server.host}")
    assert caught.value.message == "The certificate of 127.0.0.1 is not trusted (self-signed certificate)."
    assert caught.value.hint == "If your network checks TLS itself, name its certificates in SSL_CERT_FILE."
    assert server.requests == []


def test_tls_with_a_server_that_speaks_none() -> None:
    """A handshake that fails otherwise is a hiccup, in TLS's words."""

    def converse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")

    with listening(converse) as port, opened() as client:
        reason = hiccup(client, f"https://127.0.0.1:{port}").reason
    assert reason.startswith("127.0.0.1: the TLS handshake failed (")


def test_certificates_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE that names nothing is the user's mistake."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(UsageError) as caught:
        opened()
    assert caught.value.message == "The certificates to trust cannot be read (No such file or directory)."


@pytest.fixture(params=["http", "https"])
def stalling(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Server]]:
    """A server that sends most of a body and no more, and its URL."""
    pem = None
    if request.param == "https":
        pem = certificate(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with served(lambda _: Cut(HEAD + BODY[:200_000], "stall"), pem) as server:
        yield f"{request.param}://{server.host}", server


def test_interrupt_ends_blocked_reads(stalling: tuple[str, Server]) -> None:
    """Reads in several threads end at once, after what was sent, and no later request leaves the machine."""
    url, server = stalling
    ended: list[tuple[bytes, str]] = []

    def read(client: Client, everything: threading.Barrier) -> None:
        data = b""
        with client.get(url, "/file", ASKED) as answer:
            chunks = answer.chunks()
            while len(data) < 200_000:
                data += next(chunks)
            everything.wait()
            with pytest.raises(Hiccup) as caught:
                next(chunks)
        ended.append((data, caught.value.reason))

    with opened(timeout=60) as client:
        everything = threading.Barrier(4)
        threads = [threading.Thread(target=read, args=(client, everything)) for _ in range(3)]
        for thread in threads:
            thread.start()
        everything.wait()
        before = time.monotonic()
        client.interrupt()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - before < 5
        assert ended == [(BODY[:200_000], "the download was stopped")] * 3
        assert hiccup(client, url).reason == "the download was stopped"
    assert server.connections == 3


def test_what_arrived_before_an_interrupt(stalling: tuple[str, Server]) -> None:
    """Bytes that the machine had received are given afterwards as they were sent: over TLS too, none is ciphertext."""
    url, _ = stalling
    with opened() as client, client.get(url, "/file", ASKED) as answer:
        chunks = answer.chunks()
        data = next(chunks)
        time.sleep(0.2)  # for more of it to arrive
        client.interrupt()
        with suppress(Hiccup):
            for chunk in chunks:
                data += chunk
    assert BODY.startswith(data)
    assert len(data) <= 200_000


def test_a_connection_made_during_an_interrupt() -> None:
    """A socket that is connected only after the interrupt is shut down as well."""
    sockets = Sockets()
    sockets.shut_down()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.settimeout(5)
        sockets.add(ours, ("host", 1))
        assert (ours.recv(1), theirs.recv(1)) == (b"", b"")


def test_interrupt_while_an_answer_is_awaited() -> None:
    """A request that has no answer yet ends at once too."""
    with served(lambda _: Cut(b"", "stall")) as server, opened(timeout=60) as client:
        timer = threading.Timer(0.2, client.interrupt)
        timer.start()
        before = time.monotonic()
        assert hiccup(client, server.url).reason == "the download was stopped"
        assert time.monotonic() - before < 5
        timer.join()
