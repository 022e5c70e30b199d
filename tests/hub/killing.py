"""A download killed again and again, by a Hub that counts the bytes it sends; each run goes on from the last one."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from llamaconv.demo.answers import Answer, HangUp, Part, Piece, Request
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.hub import part as parts
from llamaconv.hub.repository import Digest, RemoteFile
from tests.hub.downloads import environment

__all__ = ["WEIGHTS", "Killed", "KillingHub", "kill_and_resume", "left", "on_record", "remote", "runner"]

WEIGHTS = "model.safetensors"

_STEP = 1 << 16
_LAUNCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
from llamaconv.hub import part
part.PIECE = int(sys.argv.pop(1))
from llamaconv.cli import main
sys.exit(main())
"""


def runner(piece: int, *arguments: str | Path) -> list[str]:
    """``llamaconv download`` with these arguments, a request asking for about ``piece`` bytes."""
    return [sys.executable, "-c", _LAUNCH, str(piece), "download", *map(str, arguments)]


@dataclass(frozen=True)
class Killed:
    """One run, and what the next one made of it.

    Attributes:
        sent: Bytes of the file that the Hub had handed to its connections in this run.
        gained: Bytes that the run had put on record when it died.
        there: Bytes on record then, those of earlier runs included.
        again: Bytes on record that the next run asked for.
        begins: Where the next run's ranges begin.
    """

    sent: int
    gained: int
    there: int
    again: int
    begins: tuple[int, ...]

    @property
    def twice(self) -> int:
        """Bytes sent in this run that never got on record, and so had to be sent again."""
        return self.sent - self.gained


class KillingHub(Hub):
    """Kills the process it serves when a number of bytes of its files was sent in all.

    Args:
        repositories: As for ``Hub``.
        rate: Bytes a second for each connection, about.
    """

    def __init__(self, repositories: list[Repository], *, rate: int) -> None:
        super().__init__(repositories)
        self.sent = 0
        self._pause = _STEP / rate
        self._victim: subprocess.Popen[bytes] | None = None
        self._point: int | None = None
        self._counting = Lock()

    def answer(self, request: Request) -> Answer:
        answer = super().answer(request)
        if request.server == "storage":
            return replace(answer, pieces=[_Counted(self, piece) for piece in answer.pieces])
        return answer

    def aim(self, victim: subprocess.Popen[bytes], point: int | None) -> None:
        """From now on this process is served; it dies when ``point`` bytes were sent in all, None for never."""
        with self._counting:
            self._victim, self._point = victim, point

    def count(self, nbytes: int) -> None:
        """Told of bytes that were sent.

        Raises:
            HangUp: The process is dead.
        """
        with self._counting:
            self.sent += nbytes
            if self._point is not None and self.sent >= self._point:
                assert self._victim is not None
                self._victim.kill()
                raise HangUp(reset=True)
        time.sleep(self._pause * nbytes / _STEP)


@dataclass(frozen=True)
class _Counted:
    """A piece sent in small steps over a small buffer, so that what was sent is hardly more than what arrived."""

    hub: KillingHub
    piece: Piece

    def send(self, connection: socket.socket) -> Iterator[int]:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STEP // 2)
        rest = self.piece
        assert isinstance(rest, Part)
        while rest:
            for sent in rest.first(min(_STEP, len(rest))).send(connection):
                yield sent
                rest = rest.after(sent)
                self.hub.count(sent)


def kill_and_resume(folder: Path, *, size: int, piece: int, kills: int, seed: int, rate: int) -> list[Killed]:
    """Download a file of random bytes, killed at random places, and at last left alone.

    Args:
        folder: For the files of the download, which are checked to be right in the end.
        size: Of the file.
        piece: Bytes that one request asks for, about.
        kills: How often.
        seed: Of bytes and places.
        rate: Bytes a second for each connection.
    """
    draw = random.Random(seed)
    content = draw.randbytes(size)
    # Without the ends: there must be something to kill, and something left to fetch
    points = sorted(draw.sample(range(_STEP, size - _STEP), kills))
    repository = Repository("org/m", {WEIGHTS: content})
    file = remote(repository, WEIGHTS)
    runs: list[_Run] = []
    with KillingHub([repository], rate=rate) as hub:
        for number, point in enumerate([*points, None]):
            runs.append(_run(hub, folder, file, piece, number, point))
    assert (folder / "there" / WEIGHTS).read_bytes() == content
    assert sum(request.sent for request in hub.log if request.server == "storage") == hub.sent
    return [_compared(*three) for three in zip([None, *runs], runs, runs[1:], strict=False)]


@dataclass(frozen=True)
class _Run:
    """What one run asked for, and left."""

    sent: int
    asked: tuple[tuple[int, int], ...]
    left: tuple[parts.Piece, ...]


def _run(hub: KillingHub, folder: Path, file: RemoteFile, piece: int, number: int, point: int | None) -> _Run:
    before, token = hub.sent, f"run-{number}"
    options: tuple[Any, ...] = ("org/m", WEIGHTS, "--local-dir", folder / "there", "--endpoint", hub.endpoint, "-q")
    log = folder / f"{token}.txt"
    with log.open("wb") as output:
        child = subprocess.Popen(
            runner(piece, *options), env=environment(folder, HF_TOKEN=token), stdout=output, stderr=output
        )
        hub.aim(child, point)
        status = child.wait(60)
    assert status == (0 if point is None else -9), log.read_text()
    # The token goes to the Hub alone, which is asked for the same range as the storage
    ranges = [request.range or (0, file.size - 1) for request in hub.log if request.token == token and _of(request)]
    asked = tuple((first or 0, file.size if last is None else last + 1) for first, last in ranges)
    return _Run(hub.sent - before, asked, left(folder / "there", file) if point is not None else ())


def _of(request: Request) -> bool:
    return "/resolve/" in request.path


def remote(repository: Repository, name: str) -> RemoteFile:
    """A large file of a repository as it is listed."""
    stored = repository.files[name]
    return RemoteFile(name, stored.size, Digest("sha256", stored.sha256))


def left(directory: Path, file: RemoteFile) -> tuple[parts.Piece, ...]:
    """The pieces on record in the part of ``file``."""
    path = directory / ".cache/llamaconv/parts/org%2Fm" / f"{file.name}.part"
    if not path.exists():
        return ()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = parts._read(descriptor, file)  # a Part would write to it
    finally:
        os.close(descriptor)
    return () if found is None else found[0]


def on_record(directory: Path, file: RemoteFile) -> int:
    """Bytes that the part of ``file`` says are there."""
    return sum(piece.done for piece in left(directory, file))


def _compared(earlier: _Run | None, run: _Run, following: _Run) -> Killed:
    there = sum(piece.done for piece in run.left)
    before = 0 if earlier is None else sum(piece.done for piece in earlier.left)
    held = [(piece.begin, piece.position) for piece in run.left]
    again = sum(max(0, min(end, stop) - max(begin, first)) for begin, end in following.asked for first, stop in held)
    return Killed(run.sent, there - before, there, again, tuple(sorted(begin for begin, _ in following.asked)))
