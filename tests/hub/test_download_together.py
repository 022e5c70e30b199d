from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.errors import NetworkError
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, command_line, contents, environment, fetches, impatient, repository, wait_until
from tests.hub.holding import HoldingHub
from tests.hub.killing import WEIGHTS, on_record, remote

HELD = 100_000

Start = Callable[[Hub], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts downloads into one directory; those that still run in the end are killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(hub: Hub) -> subprocess.Popen[str]:
        command = command_line("org/m", "--local-dir", tmp_path / "there", "--endpoint", hub.endpoint, "-q", "--json")
        child = subprocess.Popen(
            command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def outcome(child: subprocess.Popen[str]) -> tuple[dict[str, str], int]:
    """The state of each file as the process tells it, and how many bytes it fetched."""
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    told = json.loads(out)
    return {file["name"]: file["state"] for file in told["files"]}, told["fetched_bytes"]


def wait_line(child: subprocess.Popen[str]) -> str:
    """What the process says first."""
    assert child.stderr is not None
    return child.stderr.readline()


def test_the_second_process_waits_and_finds_everything_there(tmp_path: Path, start: Start) -> None:
    """It says for whom it waits, then fetches nothing: every file was asked for once."""
    with HoldingHub([repository()], after=HELD) as hub:
        first = start(hub)
        hub.wait()
        second = start(hub)
        said = wait_line(second)
        assert (
            said == f"Note: {tmp_path / 'there'} is being downloaded into by another process ({first.pid}); waiting\n"
        )
        hub.release()
        assert outcome(first) == (dict.fromkeys(FILES, "fetched"), sum(map(len, FILES.values())))
        assert outcome(second) == (dict.fromkeys(FILES, "there"), 0)
    assert sorted(fetches(hub)) == [(name, None) for name in FILES]
    assert contents(tmp_path / "there") == FILES


def test_a_killed_process_frees_the_directory(tmp_path: Path, start: Start) -> None:
    """Whoever waited for it goes on from its last byte."""
    with HoldingHub([repository()], after=HELD) as hub:
        first = start(hub)
        hub.wait()
        second = start(hub)
        wait_line(second)
        there, file = tmp_path / "there", remote(repository(), WEIGHTS)
        wait_until(lambda: sorted(contents(there)) == ["config.json", "tokenizer.json"])
        wait_until(lambda: on_record(there, file) == HELD)
        first.kill()
        states, fetched = outcome(second)
    assert states == {"config.json": "there", WEIGHTS: "resumed", "tokenizer.json": "there"}
    assert fetched == len(FILES[WEIGHTS]) - HELD
    assert fetches(hub)[-1] == (WEIGHTS, HELD)
    assert contents(tmp_path / "there") == FILES


def test_three_at_once_do_the_work_once(tmp_path: Path, start: Start) -> None:
    """One fetches every file, the other two none."""
    with Hub([repository()]) as hub:
        outcomes = [outcome(child) for child in [start(hub) for _ in range(3)]]
    fetched = sum(map(len, FILES.values()))
    assert sorted(nbytes for _, nbytes in outcomes) == [0, 0, fetched]
    assert sorted(fetches(hub)) == [(name, None) for name in FILES]
    assert contents(tmp_path / "there") == FILES


def test_waiting_for_another_process_can_be_interrupted(tmp_path: Path, start: Start) -> None:
    """The one that waits ends at once; the one that works does not notice."""
    with HoldingHub([repository()], after=HELD) as hub:
        first = start(hub)
        hub.wait()
        second = start(hub)
        wait_line(second)
        second.terminate()
        second.communicate(timeout=3)
        hub.release()
        assert outcome(first)[0] == dict.fromkeys(FILES, "fetched")
    assert second.returncode == 143


def test_waiting_for_another_process_ends_with_the_deadline(tmp_path: Path, start: Start) -> None:
    """It is part of the time that the download may take."""
    with HoldingHub([repository()], after=HELD) as hub:
        start(hub)
        hub.wait()
        begun = time.monotonic()
        with pytest.raises(NetworkError) as caught:
            download("org/m", tmp_path / "there", impatient(hub, deadline=0.5))
        assert time.monotonic() - begun < 2
    assert caught.value.message == "The deadline of 0.5 s is over."


def test_two_directories_do_not_wait_for_each_other(tmp_path: Path, start: Start) -> None:
    """The lock is the directory's."""
    with HoldingHub([repository()], after=HELD) as hub:
        start(hub)
        hub.wait()
        download("org/m", tmp_path / "elsewhere", impatient(hub))
    assert contents(tmp_path / "elsewhere") == FILES
