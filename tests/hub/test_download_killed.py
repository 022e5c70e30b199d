from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llamaconv.demo.answers import Answer, Request
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import NetworkError
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, environment, fetches, impatient, repository, wait_until
from tests.hub.holding import HoldingHub
from tests.hub.killing import WEIGHTS, kill_and_resume, on_record, remote, runner
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

MOST_TWICE = 1 << 20


@pytest.mark.parametrize(("pieces", "kills"), [(1, 20), (8, 12)])
def test_a_killed_download_goes_on_from_its_last_byte(tmp_path: Path, pieces: int, kills: int) -> None:
    """Killed at random places, it ends with the right bytes; what was on record is never asked for again, and what was
    on its way, all that the Hub sent twice, is less than 1 MiB for each kill."""
    size = 12_000_003
    killed = kill_and_resume(tmp_path, size=size, piece=size // pieces, kills=kills, seed=pieces, rate=12_000_000)
    assert len(killed) == kills
    assert [one.again for one in killed] == [0] * kills
    assert min(one.gained for one in killed) >= 0
    assert max(one.twice for one in killed) <= MOST_TWICE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_download_ends_at_once_and_goes_on_later(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Although the server is silent, it lets go in 3 s and says what to do; doing so fetches the rest only."""
    there, held, file = tmp_path / "there", 100_000, remote(repository(), WEIGHTS)
    with HoldingHub([repository()], after=held) as hub:
        command = runner(1 << 30, "org/m", "--local-dir", there, "--endpoint", hub.endpoint, "-q", "--json")
        with subprocess.Popen(
            command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            hub.wait()
            wait_until(lambda: on_record(there, file) == held and len(contents(there)) == len(FILES) - 1)
            child.send_signal(number)
            begun = time.monotonic()
            out, err = child.communicate(timeout=30)
            assert time.monotonic() - begun < 3
        said = "Interrupted; what was fetched stays; the same command goes on from there."
        assert (child.returncode, err) == (code, f"{said}\n")
        assert json.loads(out)["error"]["message"] == said
        assert WEIGHTS not in contents(there)
        again = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["fetched_bytes"] == file.size - held
    assert fetches(hub)[-1] == (WEIGHTS, held)
    assert contents(there) == FILES


SILENCE = Fault(Kind.STALL, after=2, seconds=60.0)
LATER = Fault(Kind.RETRY_LATER, status=429, seconds=60.0)


@pytest.mark.parametrize(
    ("place", "fault"), [("/revision/main", SILENCE), ("/tree/*", SILENCE), ("/tree/*", LATER), (WEIGHTS, LATER)]
)
def test_an_interruption_is_heard_whatever_is_waited_for(tmp_path: Path, place: str, fault: Fault) -> None:
    """While the API is silent, or between two attempts; before the first file nothing was made."""
    there = tmp_path / "there"
    with MisbehavingHub([repository()], Listed({place: [fault]})) as hub:
        command = runner(1 << 30, "org/m", "--local-dir", there, "--endpoint", hub.endpoint, "-q")
        with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as child:
            wait_until(lambda: bool(hub.played))
            time.sleep(0.2)
            child.send_signal(signal.SIGINT)
            begun = time.monotonic()
            _, err = child.communicate(timeout=30)
            assert time.monotonic() - begun < 3
    assert child.returncode == 130
    assert err.splitlines()[-1] == "Interrupted; what was fetched stays; the same command goes on from there."
    assert there.exists() == (place == WEIGHTS)


def test_an_interruption_is_heard_while_a_connection_is_being_made(tmp_path: Path) -> None:
    """The storage's host takes no connection and refuses none, as behind a firewall that drops packets."""
    with full_port() as port, Misdirecting([repository()], f"http://127.0.0.1:{port}") as hub:
        command = runner(60_000, "org/m", "--local-dir", tmp_path / "there", "--endpoint", hub.endpoint, "-q")
        with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as child:
            wait_until(lambda: [name for name, _ in fetches(hub)].count(WEIGHTS) > 1)
            child.send_signal(signal.SIGINT)
            begun = time.monotonic()
            _, err = child.communicate(timeout=60)
            assert time.monotonic() - begun < 5  # of 30 that the connection may take
    assert child.returncode == 130
    assert err == "Interrupted; what was fetched stays; the same command goes on from there.\n"


class Misdirecting(Hub):
    """A Hub that redirects to somebody else's storage."""

    def __init__(self, repositories: list[Repository], elsewhere: str) -> None:
        super().__init__(repositories)
        self._elsewhere = elsewhere

    def answer(self, request: Request) -> Answer:
        answer = super().answer(request)
        location = answer.headers.get("Location")
        if location is None:
            return answer
        return replace(answer, headers={**answer.headers, "Location": location.replace(self.storage, self._elsewhere)})


@contextmanager
def full_port() -> Iterator[int]:
    """A port whose queue of connections is full, so that the next ones wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as queue:
        for _ in range(4):
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        time.sleep(0.1)
        yield listener.getsockname()[1]


STEP = int(os.environ.get("LLAMACONV_TEST_KILL_STEP", "211"))
SCRIPT = Path(__file__).with_name("kill_each_line.py")


def test_a_kill_at_any_line_leaves_only_whole_files(tmp_path: Path) -> None:
    """Before every STEP-th line of what writes to the disk: what has its name is right, and the next run goes through.

    Nothing else is left then than what an undisturbed run leaves.
    """
    files = {**FILES, "additional_chat_templates/tool.jinja": b"{{ tools }}"}
    with Hub([Repository("org/m", files)]) as hub:
        first = random.Random(STEP).randint(1, STEP)
        command = [sys.executable, str(SCRIPT), str(tmp_path), hub.endpoint, str(first), str(STEP)]
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kill[2:] for kill in kills] == [[[], sorted(files), []]] * len(kills)
    assert {0} < {len(there) for _, there, *_ in kills}


def test_a_kill_at_any_line_on_the_way_to_another_commit_leaves_no_mixture(tmp_path: Path) -> None:
    """Whichever line a run died before, the next one leaves exactly the new commit's files, and no old one beside."""
    shards = {f"model-0000{number}-of-00002.safetensors": b"half" * number for number in (1, 2)}
    named = {f"tensor.{number}": name for number, name in enumerate(shards)}
    index = json.dumps({"weight_map": named}).encode()
    old = {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    with Hub([Repository("org/m", old)]) as hub:
        download("org/m", tmp_path / "start", impatient(hub))
        hub.push(repository())
        first = random.Random(STEP + 1).randint(1, STEP)
        arguments = (str(tmp_path), hub.endpoint, str(first), str(STEP), str(tmp_path / "start"))
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [kill[2:] for kill in kills] == [[[], sorted(FILES), []]] * len(kills)
    assert {len(FILES), len(old)} < {len(there) for _, there, *_ in kills}


@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_what_was_left_is_hashed_again(tmp_path: Path, place: int) -> None:
    """A bit that flips in an unfinished file between two runs is found: the file starts over, which is counted."""
    reset = Listed({WEIGHTS: [Fault(Kind.RESET, after=100_000)]})
    with MisbehavingHub([repository()], reset) as hub:
        with pytest.raises(NetworkError):
            download("org/m", tmp_path, impatient(hub, retries=0))
        with (tmp_path / ".cache/llamaconv/parts/org%2Fm" / f"{WEIGHTS}.part").open("r+b") as unfinished:
            unfinished.seek(place)
            byte = unfinished.read(1)[0]
            unfinished.seek(place)
            unfinished.write(bytes([byte ^ 1]))
        result = download("org/m", tmp_path, impatient(hub))
    assert [begin for name, begin in fetches(hub) if name == WEIGHTS] == [None, 100_000, None]
    assert (result.retries, result.mismatches) == (1, 1)
    assert contents(tmp_path) == FILES


def test_a_newer_commit_starts_over_what_it_changed(tmp_path: Path) -> None:
    """Bytes of the older file are thrown away, finished files that are the same are kept, the branch's files stay one
    commit's."""
    reset = Listed({WEIGHTS: [Fault(Kind.RESET, after=100_000)]})
    changed = {**FILES, WEIGHTS: FILES[WEIGHTS][::-1]}
    with MisbehavingHub([repository()], reset) as hub:
        with pytest.raises(NetworkError):
            download("org/m", tmp_path, impatient(hub, retries=0, max_workers=1))
        before = len(fetches(hub))
        hub.push(Repository("org/m", changed))
        result = download("org/m", tmp_path, impatient(hub))
    assert sorted(fetches(hub)[before:]) == [(WEIGHTS, None), ("tokenizer.json", None)]
    assert result.retries == 0
    assert contents(tmp_path) == changed


def test_a_newer_commit_goes_on_with_what_it_did_not_change(tmp_path: Path) -> None:
    """A file is known by its hash, whatever the commit."""
    reset = Listed({WEIGHTS: [Fault(Kind.RESET, after=100_000)]})
    changed = {**FILES, "config.json": b"{}"}
    with MisbehavingHub([repository()], reset) as hub:
        with pytest.raises(NetworkError):
            download("org/m", tmp_path, impatient(hub, retries=0))
        hub.push(Repository("org/m", changed))
        download("org/m", tmp_path, impatient(hub))
    assert (WEIGHTS, 100_000) in fetches(hub)
    assert contents(tmp_path) == changed
