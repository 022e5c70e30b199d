"""What hostile servers answer, and what must be left alone whatever they do."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llamaconv.demo.answers import Answer, Request
from llamaconv.demo.hub import Hub
from llamaconv.errors import LlamaconvError
from llamaconv.tasks.download import download
from tests.hub.downloads import impatient, repository

__all__ = ["Answering", "Endless", "failure", "host", "outside_of"]


def outside_of(parent: Path) -> Path:
    """A directory to download into, not made yet; beside it lies what is not the download's."""
    (parent / "outside/folder").mkdir(parents=True)
    (parent / "outside/file").write_bytes(b"not yours")
    return parent / "m"


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
