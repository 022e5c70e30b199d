from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamaconv.errors import OutputError
from llamaconv.hub.folder import Folder
from tests.hub.test_folder import opened
from tests.sinks.processes import ENVIRONMENT

HOLDER = """
import sys
from pathlib import Path
from llamaconv.hub.folder import Folder
with Folder.open(Path(sys.argv[1]), "org/name", wait=print, cancelled=lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that downloads into ``path`` until its standard input is closed or it is killed."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.kill()


class Waiting:
    """Lets the holder go on once it was looked at three times."""

    def __init__(self, other: subprocess.Popen[str], kill: bool) -> None:
        self.told: list[str] = []
        self.looks = 0
        self._other = other
        self._kill = kill

    def look(self) -> None:
        self.looks += 1
        if self.looks == 3:
            assert self._other.stdin is not None
            if self._kill:
                self._other.kill()
            else:
                self._other.stdin.close()


@pytest.mark.parametrize("kill", [False, True])
def test_the_second_process_waits_for_the_first(tmp_path: Path, kill: bool) -> None:
    """It says so once, with the number of the first, and goes on when that has finished or was killed."""
    with holder(tmp_path) as other:
        waiting = Waiting(other, kill)
        with Folder.open(tmp_path, "org/name", wait=waiting.told.append, cancelled=waiting.look):
            assert other.wait(10) == (-9 if kill else 0)
            assert (tmp_path / ".cache" / "llamaconv" / "lock").read_text() == str(os.getpid())
    assert waiting.told == [f"{tmp_path} is being downloaded into by another process ({other.pid}); waiting"]
    assert waiting.looks >= 3


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    """What ``cancelled`` raises comes out, even if it is an OSError, and the lock stays with its holder."""

    def give_up() -> None:
        raise TimeoutError("the deadline has passed")

    told: list[str] = []
    with holder(tmp_path) as other:
        with (
            pytest.raises(TimeoutError, match=r"^the deadline has passed$"),
            Folder.open(tmp_path, "org/name", wait=told.append, cancelled=give_up),
        ):
            pass
        assert other.poll() is None
    assert len(told) == 1


def test_threads_exclude_each_other_too(tmp_path: Path) -> None:
    """Two downloads into one directory from one process take turns."""
    inside = threading.Event()
    entered: list[bool] = []

    def second() -> None:
        with Folder.open(tmp_path, "org/name", wait=lambda told: inside.set(), cancelled=lambda: None):
            entered.append(True)

    with opened(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        assert inside.wait(10)
        assert entered == []
    thread.join(10)
    assert entered == [True]


def test_a_holder_of_unknown_number_is_one(tmp_path: Path) -> None:
    """What the lock file says is shown only if it is a number."""
    told: list[str] = []

    def give_up() -> None:
        raise TimeoutError

    with opened(tmp_path):
        (tmp_path / ".cache" / "llamaconv" / "lock").write_bytes(b"\x1b[2J\xff")
        with pytest.raises(TimeoutError), Folder.open(tmp_path, "org/name", wait=told.append, cancelled=give_up):
            pass
    assert told == [f"{tmp_path} is being downloaded into by another process (of unknown number); waiting"]


def test_a_lock_file_that_was_removed_holds_nobody_off(tmp_path: Path) -> None:
    """Who waited for it does not go on: another process may have made and locked a new one."""
    path = tmp_path / ".cache" / "llamaconv" / "lock"
    with holder(tmp_path) as other:
        waiting = Waiting(other, kill=True)
        with (
            pytest.raises(OutputError) as caught,
            Folder.open(tmp_path, "org/name", wait=lambda told: path.unlink(), cancelled=waiting.look),
        ):
            pass
    assert caught.value.message == f"{path} was removed by another program."
    assert caught.value.hint == "Start again."
