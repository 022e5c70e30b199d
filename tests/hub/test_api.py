from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llamaconv.errors import HubError
from llamaconv.hub.answers import Asked, Hiccup
from llamaconv.hub.api import collect, file_body, file_path, list_page, resolve
from llamaconv.hub.client import Client
from llamaconv.hub.repository import Digest, RemoteFile
from llamaconv.hub.retry import Flaw
from llamaconv.hub.secrets import Secrets
from tests.hub.scripted import Cut, Request, Server, listening, reply, served

COMMIT = "c" * 40
SHA1 = "1" * 40
SHA256 = "2" * 64
TREE = f"/api/models/org/name/tree/{COMMIT}"
SMALL = {"type": "file", "path": "config.json", "size": 7, "oid": SHA1}
LARGE = {
    "type": "file",
    "path": "sub/model.safetensors",
    "size": 9,
    "oid": SHA1,
    "lfs": {"oid": SHA256, "size": 9, "pointerSize": 1},
}
FOLDER = {"type": "directory", "path": "sub", "size": 0, "oid": SHA1}


@contextmanager
def hub(answer: Callable[[Request], bytes | Cut]) -> Iterator[tuple[Client, Server]]:
    with served(answer) as server, Client(timeout=10, token=None, proxy="", secrets=Secrets()) as client:
        yield client, server


def said(value: Any, **headers: str) -> bytes:
    return reply(200, json.dumps(value).encode(), **headers)


def test_a_revision_is_resolved_to_its_commit() -> None:
    """The API is asked below the endpoint's path, with the revision percent-encoded, slashes too."""
    with hub(lambda _: said({"sha": COMMIT, "siblings": []})) as (client, server):
        assert resolve(client, f"{server.url}/hf/", "org/name", "refs/pr/1 ü") == COMMIT
    assert [request.target for request in server.requests] == [
        "/hf/api/models/org/name/revision/refs%2Fpr%2F1%20%C3%BC"
    ]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"sha": "main"}, "sha: String should match pattern '^[0-9a-f]{40}$'"),
        ({"sha": None}, "sha: Input should be a valid string"),
        ({}, "sha: Field required"),
        ([], "Input should be an object"),
    ],
)
def test_a_commit_that_is_none(value: object, fault: str) -> None:
    """An answer that names no commit is refused, and says where."""
    with hub(lambda _: said(value)) as (client, server), pytest.raises(HubError) as caught:
        resolve(client, server.url, "org/name", "main")
    assert caught.value.message == f"What {server.host} says of org/name cannot be understood ({fault})."
    assert caught.value.hint == "Check --endpoint: it may not be a Hub."


@pytest.mark.parametrize("body", [b"<html>Log in</html>", b"", b'{"sha": "ccc'])
def test_an_answer_that_is_no_json(body: bytes) -> None:
    """What a portal or a broken mirror sends instead is a hiccup."""
    with hub(lambda _: reply(200, body)) as (client, server), pytest.raises(Hiccup) as caught:
        resolve(client, server.url, "org/name", "main")
    assert caught.value.reason == f"what {server.host} sent is no JSON"


def test_a_part_of_an_answer() -> None:
    """206 to a request for everything is a hiccup."""
    with hub(lambda _: reply(206, b"{}")) as (client, server), pytest.raises(Hiccup) as caught:
        resolve(client, server.url, "org/name", "main")
    assert caught.value.reason == f"{server.host} answered 206 (Partial Content)"


def test_an_answer_too_large() -> None:
    """Over 64 MB are not read."""
    with hub(lambda _: reply(200, b" " * 64_000_001)) as (client, server), pytest.raises(HubError) as caught:
        resolve(client, server.url, "org/name", "main")
    assert caught.value.message == f"{server.host} answered with more than 64000000 bytes, too many for its API."


def test_an_answer_that_trickles() -> None:
    """An answer whose bytes come slowly ends with the limit, not with the body."""

    def trickle(connection: Any) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b" " * 100)
            time.sleep(0.05)

    with (
        listening(trickle) as port,
        Client(timeout=10, token=None, proxy="", secrets=Secrets()) as client,
        pytest.raises(Hiccup) as caught,
    ):
        resolve(client, f"http://127.0.0.1:{port}", "org/name", "main", limit=0.3)
    assert caught.value.reason == f"127.0.0.1:{port} did not end its answer in time"


def test_files_are_listed_with_their_hashes() -> None:
    """Files in large file storage have its SHA-256 and size, others git's SHA-1; directories are no files."""
    with hub(lambda _: said([SMALL, FOLDER, LARGE])) as (client, server):
        files, following = list_page(client, server.url, "org/name", COMMIT, None)
    assert files == [
        RemoteFile("config.json", 7, Digest("git-sha1", SHA1)),
        RemoteFile("sub/model.safetensors", 9, Digest("sha256", SHA256)),
    ]
    assert following is None
    assert [request.target for request in server.requests] == [f"{TREE}?recursive=true&expand=false"]


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (SMALL | {"size": -1}, "0.size: Input should be greater than or equal to 0"),
        (SMALL | {"size": "7"}, "0.size: Input should be a valid integer"),
        (SMALL | {"size": 2**63}, "0.size: Input should be less than 9223372036854775808"),
        (SMALL | {"oid": "1"}, "0.oid: String should match pattern '^[0-9a-f]{40}$'"),
        (LARGE | {"lfs": {"oid": SHA1, "size": 9}}, "0.lfs.oid: String should match pattern '^[0-9a-f]{64}$'"),
        (LARGE | {"lfs": {"oid": SHA256, "size": -9}}, "0.lfs.size: Input should be greater than or equal to 0"),
        ({"type": "file", "size": 7, "oid": SHA1}, "0.path: Field required"),
        ("file", "0: Input should be an object"),
    ],
)
def test_entries_that_cannot_be(entry: object, fault: str) -> None:
    """A listing with a negative size, a malformed hash or no name is refused, and says where."""
    with hub(lambda _: said([entry])) as (client, server), pytest.raises(HubError) as caught:
        list_page(client, server.url, "org/name", COMMIT, None)
    assert caught.value.message.startswith(f"What {server.host} says of org/name cannot be understood ({fault}")


@pytest.mark.parametrize("place", ["{}", "https://hub.example{}", "/hf{}", "https://hub.example/hf{}"])
@pytest.mark.parametrize("name", ["org/name", "org%2Fname", "new-org/renamed", "short"])
def test_pages_follow_each_other(place: str, name: str) -> None:
    """Of the link to the next page only the query is taken: mirrors pass on another host, renamed repositories another
    name."""
    link = place.format(f"/api/models/{name}/tree/{COMMIT}?recursive=true&cursor=a%3D")

    def answer(request: Request) -> bytes:
        if "cursor" in request.target:
            return said([LARGE])
        return said([SMALL], Link=f'<https://x/first>; rel="first", <{link}>; rel="next"')

    with hub(answer) as (client, server):
        first, following = list_page(client, server.url, "org/name", COMMIT, None)
        assert following == f"{TREE}?recursive=true&cursor=a%3D"
        second, end = list_page(client, server.url, "org/name", COMMIT, following)
    assert [file.name for file in first + second] == ["config.json", "sub/model.safetensors"]
    assert end is None
    assert server.requests[-1].target == following


@pytest.mark.parametrize(
    "link",
    [
        f"/api/models/org/name/tree/{'d' * 40}?cursor=a",
        "/org/name/resolve/main/x",
        "?",
        f"{TREE}?recursive=true&expand=false",
    ],
)
def test_a_next_page_that_is_none(link: str) -> None:
    """A link to another commit, to something else, or back to the same page is refused."""
    answer = said([SMALL], Link=f"<{link}>; rel=next")
    with hub(lambda _: answer) as (client, server), pytest.raises(HubError) as caught:
        list_page(client, server.url, "org/name", COMMIT, None)
    assert caught.value.message == (
        f"{server.host} goes on with the listing at an address that is none of this listing."
    )


def listed(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, 1, Digest("git-sha1", SHA1)) for name in names]


def test_pages_are_collected() -> None:
    """The files of all pages, sorted by name."""
    assert collect([listed("b", "c"), [], listed("a")], "org/name") == tuple(listed("a", "b", "c"))


def test_a_name_that_is_listed_twice() -> None:
    """On one page or on two, a name stands for one file."""
    with pytest.raises(HubError) as caught:
        collect([listed("a", "b"), listed("a")], "org/name")
    assert caught.value.message == "The listing of org/name names a twice."


def test_a_listing_without_end() -> None:
    """Pages without files that always have another one come to an end."""
    with pytest.raises(HubError) as caught:
        collect(iter(lambda: [], None), "org/name")
    assert caught.value.message == "The listing of org/name has no end: 0 files on 100001 pages."


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("model.safetensors", f"/org/name/resolve/{COMMIT}/model.safetensors"),
        ("a b/ü%2e?#.txt", f"/org/name/resolve/{COMMIT}/a%20b/%C3%BC%252e%3F%23.txt"),
    ],
)
def test_addresses_of_files(name: str, path: str) -> None:
    """A file's address is the library's, below whatever endpoint, and arrives as it is."""
    assert file_path("org/name", COMMIT, name) == path
    asked = Asked("org/name", COMMIT, name)
    with hub(lambda _: reply(200)) as (client, server), client.get(server.url, path, asked) as answer:
        assert answer.status == 200
    assert server.requests[0].target == path


def small(data: bytes) -> RemoteFile:
    return RemoteFile("a b.json", len(data), Digest("git-sha1", SHA1))


def test_a_small_file_is_read_whole() -> None:
    """Its bytes come as they are, from its address at the commit."""
    data = b"\0not JSON"
    with hub(lambda _: reply(200, data)) as (client, server):
        assert file_body(client, f"{server.url}/hf", "org/name", COMMIT, small(data)) == data
    assert server.requests[0].target == f"/hf/org/name/resolve/{COMMIT}/a%20b.json"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (reply(200, b"ab"), Hiccup, "{} announces 2 bytes where 3 belong"),
        (reply(200, b"abcd"), Flaw, "{} announces 4 bytes where 3 belong"),
        (reply(200, b"<html>", **{"Content-Type": "text/html"}), Hiccup, "{} announces 6 bytes where 3 belong"),
        (CHUNKED % (2, b"ab"), Hiccup, "{} ended the file early, 1 bytes before its end"),
        (CHUNKED % (4, b"abcd"), Flaw, "{} sends more than the 3 bytes that the Hub promises"),
        (reply(206, b"abc"), Hiccup, "{} answered 206 (Partial Content)"),
    ],
)
def test_a_small_file_of_another_length(answer: bytes, kind: type[Exception], reason: str) -> None:
    """Too few bytes, a part of them, and a page are hiccups; too many are a flaw."""
    with hub(lambda _: answer) as (client, server), pytest.raises(kind) as caught:
        file_body(client, server.url, "org/name", COMMIT, small(b"abc"))
    assert str(caught.value) == reason.format(server.host)
