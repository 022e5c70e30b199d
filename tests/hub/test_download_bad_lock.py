from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamaconv.demo.hub import Hub
from tests.hub.downloads import failure, fetches, repository

COMMIT = repository().commit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON (Expecting value, line 1, column 1)."),
        ("[]", "not a JSON object."),
        ('{"version": 2}', "version is 2: input should be 1."),
        ("{}", "version is missing."),
    ],
)
def test_a_damaged_lock_file(tmp_path: Path, text: str, message: str) -> None:
    """It is named with what is wrong in it, and nothing is asked."""
    lock = tmp_path / "lock.json"
    lock.write_text(text)
    with Hub([repository()]) as hub:
        error = failure(hub, tmp_path / "m", lock=lock, locked=True)
        assert hub.log == []
    assert (error.exit_code, error.message.splitlines()[0]) == (3, f"{lock}: {message}")
    assert error.hint == "Write it anew with --lock, without --locked."


@pytest.mark.parametrize(
    ("place", "message", "asked"),
    [
        ("none/model.lock", "No such file or directory.", False),
        ("folder", "not a regular file.", False),
        ("m/model.safetensors", " is one of the files that are downloaded.", True),
        ("m/.cache/llamaconv/listing.json", " lies among the download's own records.", True),
    ],
)
def test_a_place_where_no_lock_file_can_be(tmp_path: Path, place: str, message: str, asked: bool) -> None:
    """It is refused before the Hub is asked or, where that depends on the files, before one of them is."""
    (tmp_path / "folder").mkdir()
    lock = tmp_path / place
    with Hub([repository()]) as hub:
        error = failure(hub, tmp_path / "m", lock=lock)
        assert (hub.log != []) == asked
        assert fetches(hub) == []
    colon = "" if asked else ": "
    assert (error.exit_code, error.message) == (7, f"{lock}{colon}{message}")


def test_a_lock_file_that_is_missing(tmp_path: Path) -> None:
    """There is nothing to reproduce."""
    with Hub([repository()]) as hub:
        error = failure(hub, tmp_path / "m", lock=tmp_path / "lock.json", locked=True)
        assert hub.log == []
    assert (error.exit_code, error.message) == (3, f"{tmp_path}/lock.json does not exist.")


def test_a_lock_file_that_leads_out(tmp_path: Path) -> None:
    """The names in it are no more trusted than a server's."""
    lock = tmp_path / "lock.json"
    file = {"size": 9, "git-sha1": "1" * 40}
    told = {"version": 1, "repository": "org/m", "revision": "main", "commit": COMMIT, "files": {"../evil": file}}
    lock.write_text(json.dumps(told))
    with Hub([repository()]) as hub:
        for offline in (False, True):
            error = failure(hub, tmp_path / "m", lock=lock, locked=True, offline=offline)
            assert error.exit_code == 3
            assert error.message == f"{lock}: the file name \"../evil\" has '..' in it."
        assert hub.log == []
