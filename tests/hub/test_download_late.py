"""Answers that come when nobody waits for them any more."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from llamaconv.demo.answers import Answer, Request
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.hub import part
from llamaconv.tasks.download import download
from tests.hub.downloads import contents, impatient, wait_until

FIRST, SECOND = "model-a.safetensors", "model-b.safetensors"
FILES = {
    "config.json": b"{}",
    FIRST: random.Random(1).randbytes(200_000),
    SECOND: random.Random(2).randbytes(400_000),
}


@pytest.fixture(autouse=True)
def two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first shard, and four of the second."""
    monkeypatch.setattr(part, "PIECE", 100_000)


class LateHub(Hub):
    """Its storage gives all of the first shard to whoever asks for its first piece, and the second piece too late.

    Args:
        directory: Where the download goes.
        status: Of the late answer.
        shards: How many there are; with two, the late answer comes while the second is fetched, else never.
    """

    def __init__(self, directory: Path, status: int, shards: int = 2) -> None:
        names = [FIRST, SECOND][:shards]
        super().__init__([Repository("org/m", {name: FILES[name] for name in ("config.json", *names)})])
        self.directory = directory
        self.status = status
        self.asked, self.go, self.answered = Event(), Event(), Event()

    def answer(self, request: Request) -> Answer:
        if request.server != "storage" or request.range is None:
            return super().answer(request)
        if request.path.endswith(FIRST):
            return self._whole(request) if request.range[0] == 0 else self._late(request)
        if request.range[0] == 300_000:
            wait_until((self.directory / FIRST).exists)
            self.go.set()
            self.answered.wait(5)
            time.sleep(0.2)
        return super().answer(request)

    def _whole(self, request: Request) -> Answer:
        self.asked.wait(5)
        plain = {name: value for name, value in request.headers.items() if name != "range"}
        answer = super().answer(replace(request, headers=plain))
        return replace(answer, headers={**answer.headers, "ETag": 'W/"weak"'})

    def _late(self, request: Request) -> Answer:
        self.asked.set()
        self.go.wait(20)
        self.answered.set()
        headers = {"Retry-After": "20", "Content-Length": "0"}
        return super().answer(request) if self.status == 206 else Answer(self.status, headers)


@pytest.mark.parametrize("status", [206, 416, 503, 403])
def test_a_late_answer_changes_nothing(tmp_path: Path, status: int) -> None:
    """What it was asked for is long in its place: it is neither written anywhere, nor waited for, nor a failure."""
    directory, began = tmp_path / "m", time.monotonic()
    with LateHub(directory, status) as hub:
        result = download("org/m", directory, impatient(hub, max_workers=2, max_wait=20.0, timeout=20.0, retries=0))
        assert hub.answered.is_set()
    assert contents(directory) == {name: FILES[name] for name in sorted(FILES)}
    assert (result.retries, result.mismatches) == (0, 0)
    assert time.monotonic() - began < 10


def test_an_answer_that_nobody_needs_is_not_waited_for(tmp_path: Path) -> None:
    """When all files are finished, a connection that is still waiting is cut."""
    directory, began = tmp_path / "m", time.monotonic()
    with LateHub(directory, 206, shards=1) as hub:
        download("org/m", directory, impatient(hub, max_workers=2, timeout=20.0))
        assert time.monotonic() - began < 5
        assert not hub.answered.is_set()
        hub.go.set()
    assert contents(directory) == {name: FILES[name] for name in ("config.json", FIRST)}
