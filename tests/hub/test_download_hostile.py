from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llamaconv.demo.answers import Answer, Part, Request, json_answer
from llamaconv.demo.hub import Hub
from llamaconv.errors import IntegrityError, NetworkError
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, impatient
from tests.hub.hostile import Answering, Endless, failure, host, outside_of
from tests.hub.scripted import listening


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return outside_of(tmp_path)


def test_a_body_without_end(directory: Path) -> None:
    """What comes after the promised bytes is neither kept nor waited for, and the file is refused."""

    def endless(hub: Hub, request: Request) -> Answer | None:
        return Answer(200, {}, [Endless(b"!" * 65536)]) if request.server == "storage" else None

    with Answering(endless) as hub:
        error = failure(hub, directory)
        assert isinstance(error, IntegrityError)
        assert error.message == (
            f"model.safetensors: {host(hub.storage)} sends more than the 300,007 bytes that the Hub promises; "
            "given up after 1 retry."
        )
    assert "model.safetensors" not in contents(directory)
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 2 * 300_007


def test_redirects_in_a_circle(directory: Path) -> None:
    """They end after ten, and count as one failure."""

    def circle(hub: Hub, request: Request) -> Answer:
        return Answer(302, {"Location": request.path + "?again", "Content-Length": "0"})

    with Answering(circle) as hub:
        error = failure(hub, directory)
        assert isinstance(error, NetworkError)
        assert error.message == (f"org/m: {host(hub.endpoint)} redirects more than 10 times; given up after 1 retry.")
        assert len(hub.log) == 2 * 11
    assert not directory.exists()


@pytest.mark.parametrize(
    ("location", "fault"),
    [
        ("file:///etc/passwd", "redirects to an address that is neither http nor https."),
        ("ftp://127.0.0.1/x", "redirects to an address that is neither http nor https."),
        ("javascript:alert(1)", "redirects to an address that is neither http nor https."),
        ("http://[::1/x", "redirects to an address that is no URL."),
    ],
)
def test_redirects_that_are_not_followed(directory: Path, location: str, fault: str) -> None:
    """A file that is said to be nowhere on the web is refused at once."""

    def astray(hub: Hub, request: Request) -> Answer | None:
        away = Answer(302, {"Location": location, "Content-Length": "0"})
        return away if request.path.endswith("model.safetensors") else None

    with Answering(astray) as hub:
        error = failure(hub, directory)
        assert (error.exit_code, error.message) == (4, f"{host(hub.endpoint)} {fault}")
    assert "model.safetensors" not in contents(directory)


def test_a_login_in_a_redirect_is_not_used(directory: Path) -> None:
    """User and password in a Location reach nobody."""

    def named(hub: Hub, request: Request) -> Answer | None:
        answer = Hub.answer(hub, request)
        location = answer.headers.get("Location", "").replace("://", "://me:hush@")
        return replace(answer, headers={**answer.headers, "Location": location}) if location else None

    with Answering(named) as hub:
        download("org/m", directory, impatient(hub))
        assert contents(directory) == FILES
        assert not any("authorization" in request.headers for request in hub.log)


def test_pages_without_end(directory: Path) -> None:
    """A listing that always has another page is ended by the deadline."""

    def endless(hub: Hub, request: Request) -> Answer | None:
        if "/tree/" not in request.path:
            return None
        number = int(request.query.rpartition("cursor=")[2]) + 1 if "cursor=" in request.query else 0
        return json_answer([], headers={"Link": f'<{hub.endpoint}{request.path}?cursor={number}>; rel="next"'})

    with Answering(endless) as hub:
        began = time.monotonic()
        error = failure(hub, directory, deadline=0.5)
        assert time.monotonic() - began < 1.5
    assert (error.exit_code, error.message.partition(":")[0]) == (5, "The deadline of 0.5 s is over.")
    assert not directory.exists()


@pytest.mark.parametrize("chunk", [b" " * 65536, b"[" * 65536])
def test_json_without_end(directory: Path, chunk: bytes) -> None:
    """No more of it is read than the largest listing could have."""

    def endless(hub: Hub, request: Request) -> Answer:
        return Answer(200, {}, [Endless(chunk)])

    with Answering(endless) as hub:
        error = failure(hub, directory)
        assert error.exit_code == 4
        assert error.message == (f"{host(hub.endpoint)} answered with more than 64000000 bytes, too many for its API.")
    assert not directory.exists()


@pytest.mark.parametrize("body", [b"[" * 1_000_000, b"<!DOCTYPE html>", b"\xff\xfe", b'{"sha": "' + b"1" * 40, b""])
def test_json_that_is_none(directory: Path, body: bytes) -> None:
    """Broken or bottomless JSON is what a retry may mend."""

    def broken(hub: Hub, request: Request) -> Answer:
        return Answer(200, {"Content-Length": str(len(body))}, [Part(body, 0, len(body))])

    with Answering(broken) as hub:
        error = failure(hub, directory)
        assert isinstance(error, NetworkError)
        assert error.message == f"org/m: what {host(hub.endpoint)} sent is no JSON; given up after 1 retry."
        assert len(hub.log) == 2
    assert not directory.exists()


@pytest.mark.parametrize("value", ["abc", "-5", "1e3", "0x10", "5, 6", "+5", " ", "9" * 30])
def test_lengths_that_are_none(directory: Path, value: str) -> None:
    """An answer whose Content-Length is no number is none."""

    def nonsense(hub: Hub, request: Request) -> Answer | None:
        return Answer(200, {"Content-Length": value}) if request.server == "storage" else None

    with Answering(nonsense) as hub:
        error = failure(hub, directory)
        assert isinstance(error, NetworkError)
        assert error.message == (
            f"model.safetensors: {host(hub.storage)} did not answer in HTTP/1.1; given up after 1 retry."
        )
    assert "model.safetensors" not in contents(directory)


@pytest.mark.parametrize("length", [300_008, 10**17])
def test_lengths_beyond_the_promise(directory: Path, length: int) -> None:
    """A body that is announced as longer than the file is refused before a byte of it is read."""

    def long(hub: Hub, request: Request) -> Answer | None:
        pieces = [Endless(b"!" * 65536)]
        return Answer(200, {"Content-Length": str(length)}, pieces) if request.server == "storage" else None

    with Answering(long) as hub:
        error = failure(hub, directory)
        assert isinstance(error, IntegrityError)
        assert error.message == (
            f"model.safetensors: {host(hub.storage)} announces {length:,} bytes where 300,007 belong; "
            "given up after 1 retry."
        )
    assert "model.safetensors" not in contents(directory)


@pytest.mark.parametrize("headers", [{"X-Long": "x" * 1_000_000}, {f"X-{number}": "x" for number in range(100_000)}])
def test_headers_without_measure(directory: Path, headers: dict[str, str]) -> None:
    """A megabyte of headers is not read to its end."""

    def long(hub: Hub, request: Request) -> Answer:
        return json_answer({}, headers=headers)

    with Answering(long) as hub:
        error = failure(hub, directory)
        assert isinstance(error, NetworkError)
        assert error.message == f"org/m: {host(hub.endpoint)} did not answer in HTTP/1.1; given up after 1 retry."


def test_a_server_that_says_nothing(directory: Path) -> None:
    """It costs the timeout, for each attempt, and no more."""

    def silent(hub: Hub, request: Request) -> Answer:
        time.sleep(0.4)
        return json_answer({})

    with Answering(silent) as hub:
        began = time.monotonic()
        error = failure(hub, directory, timeout=0.2)
        assert 0.4 <= time.monotonic() - began < 1.5
        assert error.message == (f"org/m: {host(hub.endpoint)} was silent for 0.2 s; given up after 1 retry.")
    assert not directory.exists()


def trickle(connection: socket.socket) -> None:
    """A status line, and then a header that has no end."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


@pytest.mark.parametrize("where", ["hub", "storage"])
@pytest.mark.parametrize("part", ["header", "body"])
def test_a_server_that_trickles(directory: Path, where: str, part: str) -> None:
    """One that is never silent, and never done, is ended by the deadline: in its headers as in its body."""

    def trickling(hub: Hub, request: Request) -> Answer | None:
        if request.server == "hub" and (where == "hub" or request.path.endswith(".safetensors")) and part == "header":
            return Answer(302, {"Location": f"http://127.0.0.1:{port}/", "Content-Length": "0"})
        return Answer(200, {}, [Endless(b" ", 0.02)]) if request.server == where else None

    with listening(trickle) as port, Answering(trickling) as hub:
        began = time.monotonic()
        error = failure(hub, directory, deadline=0.5)
        assert time.monotonic() - began < 1.5
    assert isinstance(error, NetworkError)
    assert error.message.startswith("The deadline of 0.5 s is over")


def test_words_of_a_server_are_harmless(directory: Path) -> None:
    """What it says in a refusal reaches the screen without escape sequences, on one line, and cut."""

    def rude(hub: Hub, request: Request) -> Answer:
        return json_answer({}, 403, {"X-Error-Message": "\x1b[2J\x07 " + "very " * 1000})

    with Answering(rude) as hub:
        error = failure(hub, directory)
    assert r"“\x1b[2J\x07 very very" in error.message
    assert len(error.message) < 400
    assert json.dumps(error.message, ensure_ascii=False).count("\\n") == 0
