from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamaconv.errors import OutputExistsError, OutputLockedError
from llamaconv.sinks.lock import LOCK, claim, take


def test_a_directory_has_one_holder_at_a_time(tmp_path: Path) -> None:
    """The second claim is refused with the holder's number, until the first is given up."""
    room = tmp_path / "room"
    first = claim(room)
    with pytest.raises(OutputLockedError) as caught:
        claim(room)
    assert caught.value.message == f"{room} is being written by another process ({os.getpid()})."
    assert caught.value.exit_code == 7
    first.release()
    second = claim(room)
    assert os.listdir(room) == [LOCK]
    second.release()


def test_what_no_run_of_ours_left_is_refused(tmp_path: Path) -> None:
    """A folder with somebody's files, a file and a link are not taken; they would be cleared."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("theirs", "file", "link", "dangling"):
        with pytest.raises(OutputExistsError) as caught:
            claim(tmp_path / name)
        assert caught.value.message == f"{tmp_path / name} is in the way: no unfinished run left it."
    assert os.listdir(tmp_path / "empty") == []


def test_what_a_run_of_ours_left_is_taken(tmp_path: Path) -> None:
    """An empty folder, one with a lock file and one with a manifest may be claimed."""
    for name, content in [("empty", None), ("locked", LOCK), ("old", "llamaconv.json")]:
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / content).touch()
        claim(tmp_path / name).release()


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    """A link called .lock would have another file truncated."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        take(tmp_path / "room")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_lock_stays_with_its_directory(tmp_path: Path) -> None:
    """After a rename the lock is not at the old name; removing it touches its own file and no other's."""
    first = claim(tmp_path / "room")
    (tmp_path / "room").rename(tmp_path / "published")
    second = claim(tmp_path / "room")
    assert not first.is_at(tmp_path / "room")
    assert first.is_at(tmp_path / "published")
    first.remove()
    assert os.listdir(tmp_path / "published") == []
    assert second.is_at(tmp_path / "room")
    first.remove()
    first.release()
    (tmp_path / "room" / LOCK).unlink()
    (tmp_path / "room" / LOCK).touch()
    assert not second.is_at(tmp_path / "room")
    second.remove()
    assert os.listdir(tmp_path / "room") == [LOCK]
    second.release()
