from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llamaconv.demo.answers import Answer, Part, Request, json_answer
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import DiskFullError, HubError, IntegrityError, LlamaconvError, NetworkError, OutputError
from llamaconv.hub.repository import Digest, Listing, RemoteFile
from llamaconv.hub.stored_listing import Stored
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, impatient, repository
from tests.hub.scripted import listening

NOTHING_WRITTEN = "Nothing was written: such names are a fault of the repository or of the server, or an attack."


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where downloads go; beside it lies what is not theirs."""
    (tmp_path / "outside/folder").mkdir(parents=True)
    (tmp_path / "outside/file").write_bytes(b"not yours")
    return tmp_path / "m"


def state(root: Path) -> dict[str, tuple[object, ...]]:
    """All there is below a directory: kinds, contents and times."""
    return {str(path.relative_to(root)): _state(path) for path in (root, *root.rglob("*"))}


def _state(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "link", os.readlink(path)
    content = path.read_bytes() if stat.S_ISREG(found.st_mode) else b""
    return stat.S_IFMT(found.st_mode), content, found.st_mtime_ns


def failure(hub: Hub, directory: Path, **settings: Any) -> LlamaconvError:
    """What a download fails with; nothing beside the directory is touched by it."""
    before = state(directory.parent / "outside")
    with pytest.raises(LlamaconvError) as caught:
        download("org/m", directory, impatient(hub, **{"retries": 1, **settings}))
    assert state(directory.parent / "outside") == before
    assert [path.name for path in directory.parent.iterdir() if path.name not in ("outside", "m")] == []
    return caught.value


def host(origin: str) -> str:
    return urlsplit(origin).netloc


class Answering(Hub):
    """Gives ``answer`` wherever that is not None, and else what it would."""

    def __init__(self, instead: Callable[[Hub, Request], Answer | None]) -> None:
        super().__init__([repository()])
        self._instead = instead

    def answer(self, request: Request) -> Answer:
        return self._instead(self, request) or super().answer(request)


@dataclass(frozen=True)
class Endless:
    """The same bytes, again and again, at some distance, until the client goes."""

    data: bytes
    pause: float = 0.0

    def send(self, connection: socket.socket) -> Iterator[int]:
        connection.settimeout(5.0)
        while True:
            connection.sendall(self.data)
            yield len(self.data)
            time.sleep(self.pause)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../outside/evil.json", "'../outside/evil.json' has '..' in it"),
        ("a/../../outside/evil.json", "'a/../../outside/evil.json' has '..' in it"),
        ("..", "'..' has '..' in it"),
        ("/etc/evil.json", "'/etc/evil.json' is absolute"),
        ("C:evil.json", "'C:evil.json' names a drive"),
        ("c:/evil.json", "'c:/evil.json' names a drive"),
        ("..\\outside\\evil.json", r"'..\\outside\\evil.json' holds a backslash"),
        ("evil\0.json", r"'evil\x00.json' holds a NUL"),
        ("evil\x1b[2J.json", r"'evil\x1b[2J.json' holds a control character"),
        ("evil\n.json", r"'evil\n.json' holds a control character"),
        ("a//evil.json", "'a//evil.json' has an empty part"),
        ("a/", "'a/' has an empty part"),
        ("./evil.json", "'./evil.json' has a part '.'"),
        ("", "'' is empty"),
        ("e" * 256, f"'{'e' * 256}' has a part longer than 255 bytes"),
        (".cache/llamaconv/listing.json", "'.cache/llamaconv/listing.json' is ours"),
        (".CACHE/LlamaConv/done/config.json.json", "'.CACHE/LlamaConv/done/config.json.json' is ours"),
        (".cache", "'.cache' is ours"),
        (".git/hooks/post-checkout", "'.git/hooks/post-checkout' is git's"),
        ("a/.Git/config", "'a/.Git/config' is git's"),
        (".g\u200cit/config", r"'.g\u200cit/config' is git's"),
        ("config.json/evil.json", "'config.json' is a file and a folder"),
    ],
)
def test_names_that_may_not_be_used(directory: Path, name: str, fault: str) -> None:
    """A listing with one is refused as a whole, whatever was wanted: no file is asked for, no directory made."""
    with Hub([Repository("org/m", {**FILES, name: b"{}"})]) as hub:
        for files in ((), ("tokenizer.json",)):
            error = failure(hub, directory, files=files)
            assert isinstance(error, HubError)
            assert error.message.splitlines()[0] == f"org/m: the file name {fault}."
            assert error.hint == NOTHING_WRITTEN
        assert not any("/resolve/" in request.path for request in hub.log)
    assert not directory.exists()


class Twisted(Repository):
    """A commit whose listing has more than its files."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        super().__init__("org/m", FILES)
        self._entries = entries

    def tree(self) -> list[dict[str, Any]]:
        return [*super().tree(), *self._entries]


def entry(path: str, /, **changes: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": "1" * 40, "size": 3, **changes}


@pytest.mark.parametrize("page_size", [1000, 1])
def test_a_name_that_stands_there_twice(directory: Path, page_size: int) -> None:
    """On one page or on two, nobody could say which of the two files is meant."""
    with Hub([Twisted(entry("config.json"))], page_size=page_size) as hub:
        error = failure(hub, directory)
    assert (error.exit_code, error.message) == (4, "The listing of org/m names config.json twice.")
    assert not directory.exists()


@pytest.mark.parametrize(
    ("twisted", "fault"),
    [
        (entry("x.json", size=10**400), "0.size: Input should be less than 9223372036854775808"),
        (entry("x.json", size=-1), "3.size: Input should be greater than or equal to 0"),
        (entry("x.json", size="3"), "3.size: Input should be a valid integer"),
        (entry("x.json", oid="../../x"), "3.oid: String should match pattern '^[0-9a-f]{40}$'"),
        (entry("x.json", lfs={"oid": "x", "size": 3}), "3.lfs.oid: String should match pattern '^[0-9a-f]{64}$'"),
        (entry("x.json", path=["x"]), "3.path: Input should be a valid string"),
    ],
)
def test_entries_that_make_no_sense(directory: Path, twisted: dict[str, Any], fault: str) -> None:
    """The refusal says which, and that the endpoint may be no Hub."""
    with Hub([Twisted(twisted)]) as hub:
        error = failure(hub, directory)
        assert error.exit_code == 4
        assert error.message == f"What {host(hub.endpoint)} says of org/m cannot be understood ({fault})."
        assert error.hint == "Check --endpoint: it may not be a Hub."
    assert not directory.exists()


def test_a_file_larger_than_any_disk(directory: Path) -> None:
    """A promised size that nobody has room for ends the download before the first byte."""
    with Hub([Twisted(entry("huge.json", size=2**62))]) as hub:
        error = failure(hub, directory)
        assert isinstance(error, DiskFullError)
        assert f"{2**62 + sum(map(len, FILES.values())):,} bytes are still to be fetched" in error.message
        assert not any("/resolve/" in request.path for request in hub.log)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("sub", "../outside/folder"),
        ("sub", "../outside/missing"),
        ("sub/deep", "../../outside/folder"),
        ("model.safetensors", "../outside/file"),
        ("model.safetensors", "../outside/missing"),
        ("model.safetensors", "config.json"),
        (".cache", "../outside/folder"),
        (".cache/llamaconv", "../../outside/folder"),
        (".cache/llamaconv/parts", "../../../outside/folder"),
        (".cache/llamaconv/parts/model.safetensors.part", "../../../../outside/file"),
        (".cache/llamaconv/parts/sub", "../../../../outside/folder"),
        (".cache/llamaconv/done", "../../../outside/folder"),
        (".cache/llamaconv/lock", "../../../outside/file"),
        (".cache/llamaconv/.gitignore", "../../../outside/missing"),
    ],
)
def test_links_in_the_way(directory: Path, link: str, target: str) -> None:
    """Whatever a symbolic link stands for, it is named, stays, and leads nobody out; without it all goes well."""
    nested = Repository("org/m", {**FILES, "sub/deep/more.json": b"{}"})
    planted = directory / link
    planted.parent.mkdir(parents=True)
    planted.symlink_to(target)
    with Hub([nested]) as hub:
        error = failure(hub, directory, include=("*",))
        assert isinstance(error, OutputError)
        assert error.message == f"{planted} is a symbolic link: nothing is written through it."
        assert error.hint == "Remove it, or choose another directory."
        assert os.readlink(planted) == target
        planted.unlink()
        download("org/m", directory, impatient(hub, include=("*",)))
    assert contents(directory) == {**FILES, "sub/deep/more.json": b"{}"}


def test_notes_that_lead_out(directory: Path) -> None:
    """What an earlier download is said to have listed is no way out either."""
    with Hub([repository()]) as hub:
        download("org/m", directory, impatient(hub))
        evil = RemoteFile("../outside/file", 9, Digest("git-sha1", "1" * 40))
        commit = repository().commit
        listing = Listing("org/m", commit, (evil,))
        notes = directory / ".cache/llamaconv/listing.json"
        notes.write_bytes(Stored("main", listing, (evil.name,)).to_json())
        error = failure(hub, directory, offline=True, files=(evil.name,))
    assert isinstance(error, OutputError)
    assert error.message == "'../outside/file' is no name of a file below the directory."


def test_a_body_without_end(directory: Path) -> None:
    """What comes after the promised bytes is neither kept nor waited for, and the file is refused."""

    def endless(hub: Hub, request: Request) -> Answer | None:
        return Answer(200, {}, [Endless(b"!" * 65536)]) if request.server == "storage" else None

    with Answering(endless) as hub:
        error = failure(hub, directory)
        assert isinstance(error, IntegrityError)
        assert error.message == (
            f"model.safetensors: {host(hub.storage)} sends more than the 300,007 bytes that the Hub promises; "
            "given up after 1 retries."
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
        assert error.message == (f"org/m: {host(hub.endpoint)} redirects more than 10 times; given up after 1 retries.")
        assert len(hub.log) == 2 * 11
    assert not directory.exists()


@pytest.mark.parametrize(
    ("location", "fault"),
    [
        ("file:///etc/passwd", "redirects to an address that is neither http nor https."),
        ("ftp://127.0.0.1/x", "redirects to an address that is neither http nor https."),
        ("javascript:alert(1)", "redirects to an address that is neither http nor https."),
        ("http://[::1/x", "redirects to an address that is no URL."),
        ("http://127.0.0.1:99999/x", "redirects to an address that is no URL."),
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
        assert error.message == f"org/m: what {host(hub.endpoint)} sent is no JSON; given up after 1 retries."
        assert len(hub.log) == 2
    assert not directory.exists()


@pytest.mark.parametrize("value", ["abc", "-5", "1e3", "0x10", "5, 6", "+5", " "])
def test_lengths_that_are_none(directory: Path, value: str) -> None:
    """An answer whose Content-Length is no number is none."""

    def nonsense(hub: Hub, request: Request) -> Answer | None:
        return Answer(200, {"Content-Length": value}) if request.server == "storage" else None

    with Answering(nonsense) as hub:
        error = failure(hub, directory)
        assert isinstance(error, NetworkError)
        assert error.message == (
            f"model.safetensors: {host(hub.storage)} did not answer in HTTP/1.1; given up after 1 retries."
        )
    assert "model.safetensors" not in contents(directory)


@pytest.mark.parametrize("length", [300_008, 10**17, 10**30])
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
            "given up after 1 retries."
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
        assert error.message == f"org/m: {host(hub.endpoint)} did not answer in HTTP/1.1; given up after 1 retries."


def test_a_server_that_says_nothing(directory: Path) -> None:
    """It costs the timeout, for each attempt, and no more."""

    def silent(hub: Hub, request: Request) -> Answer:
        time.sleep(0.4)
        return json_answer({})

    with Answering(silent) as hub:
        began = time.monotonic()
        error = failure(hub, directory, timeout=0.2)
        assert 0.4 <= time.monotonic() - began < 1.5
        assert error.message == (f"org/m: {host(hub.endpoint)} was silent for 0.2 s; given up after 1 retries.")
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
