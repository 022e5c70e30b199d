from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import DiskFullError, HubError, OutputError
from llamaconv.hub.repository import Digest, Listing, RemoteFile
from llamaconv.hub.stored_listing import Stored
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, impatient, repository
from tests.hub.hostile import failure, host, outside_of

NOTHING_WRITTEN = "Nothing was written: such names are a fault of the repository or of the server, or an attack."


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return outside_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../outside/evil.json", "has '..' in it"),
        ("a/../../outside/evil.json", "has '..' in it"),
        ("..", "has '..' in it"),
        ("/etc/evil.json", "is absolute"),
        ("C:evil.json", "names a drive"),
        ("c:/evil.json", "names a drive"),
        ("..\\outside\\evil.json", "has '..' in it"),
        ("evil\0.json", "holds a NUL"),
        ("evil\x1b[2J.json", "holds a control character"),
        ("evil\n.json", "holds a control character"),
        ("a//evil.json", "has an empty part"),
        ("a/", "has an empty part"),
        ("./evil.json", "has a part '.'"),
        ("", "is empty"),
        (".cache/llamaconv/listing.json", "is ours"),
        (".CACHE/LlamaConv/done/config.json.json", "is ours"),
        (".cache", "is ours"),
        (".git/hooks/post-checkout", "is git's"),
        ("a/.Git/config", "is git's"),
    ],
)
def test_names_that_may_not_be_used(directory: Path, name: str, fault: str) -> None:
    """A listing with one is refused as a whole, whatever was wanted: no file is asked for, no directory made."""
    with Hub([Repository("org/m", {**FILES, name: b"{}"})]) as hub:
        for files in ((), ("tokenizer.json",)):
            error = failure(hub, directory, files=files)
            assert isinstance(error, HubError)
            assert error.message == f"org/m: the file name {json.dumps(name)} {fault}."
            assert error.hint == NOTHING_WRITTEN
        assert not any("/resolve/" in request.path for request in hub.log)
    assert not directory.exists()


def test_several_names_that_may_not_be_used(directory: Path) -> None:
    """All are told at once; one may also be that of a file and a folder."""
    with Hub([Repository("org/m", {**FILES, "config.json/evil.json": b"{}", "../evil": b"{}"})]) as hub:
        error = failure(hub, directory)
    assert error.message == (
        'org/m: the file name "../evil" has \'..\' in it.\norg/m: the file name "config.json" is a file and a folder.'
    )
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
        (entry("x.json", size=10**400), "3.size: Input should be less than 9223372036854775808"),
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
        (".cache/llamaconv/parts/org%2Fm", "../../../../outside/folder"),
        (".cache/llamaconv/parts/org%2Fm/model.safetensors.part", "../../../../../outside/file"),
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
        notes.write_bytes(Stored("main", listing, (evil.name,), complete=True).to_json())
        error = failure(hub, directory, offline=True, files=(evil.name,))
    assert isinstance(error, OutputError)
    assert error.message == "'../outside/file' is no name of a file below the directory."
