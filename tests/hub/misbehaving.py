"""The small Hub with faults on a schedule: what networks, proxies and servers do to a download."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from threading import Lock
from typing import Any, Protocol

from llamaconv.demo.answers import Answer, Part, Piece, Request
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from tests.hub.faults import ANY, Fault, Kind, spoilt, suits

__all__ = ["ANY", "Fault", "Kind", "Listed", "MisbehavingHub", "Played", "Schedule", "Seeded"]


@dataclass(frozen=True)
class Played:
    """A fault that was played, and the request it was played on."""

    fault: Fault
    request: Request


class Schedule(Protocol):
    """Decides about each request."""

    def fault(self, request: Request, answer: Answer) -> Fault | None:
        """The fault to play instead of the honest ``answer``, which must suit it (``suits``)."""
        ...


@dataclass
class Listed:
    """Faults by place, in order; each waits for a request that it suits.

    Attributes:
        faults: By glob on ``hub/path`` or ``storage/path``, to which a ``*`` is prefixed, so that a name is enough.
    """

    faults: Mapping[str, Sequence[Fault]]
    _spent: Counter[str] = field(default_factory=Counter)

    def fault(self, request: Request, answer: Answer) -> Fault | None:
        for place, faults in self.faults.items():
            left = faults[self._spent[place] :]
            if left and _at(request, place) and suits(left[0], request, answer):
                self._spent[place] += 1
                return left[0]
        return None


@dataclass
class Seeded:
    """Faults drawn by chance, the same in every run for the nth request to a path, whichever thread comes first.

    Attributes:
        seed: Of the draws.
        rate: Share of the requests that get one.
        most: Faults that a path of a server gets; then it is left alone.
        among: The faults: a kind that suits the request, and one of that kind; ``after`` is drawn anew.
    """

    seed: int
    rate: float = 0.5
    most: int = 3
    among: Sequence[Fault] = ANY
    _asked: Counter[str] = field(default_factory=Counter)
    _played: Counter[str] = field(default_factory=Counter)

    def fault(self, request: Request, answer: Answer) -> Fault | None:
        place = f"{request.server}{request.path}"
        self._asked[place] += 1
        draw = random.Random(f"{self.seed} {place} {self._asked[place]}")
        if self._played[place] >= self.most or draw.random() >= self.rate:
            return None
        kinds = list(dict.fromkeys(fault.kind for fault in self.among))
        draw.shuffle(kinds)
        for kind in kinds:
            fault = draw.choice([fault for fault in self.among if fault.kind is kind])
            fault = replace(fault, after=draw.random())
            if suits(fault, request, answer):
                self._played[place] += 1
                return fault
        return None


class MisbehavingHub(Hub):
    """A Hub that plays faults.

    Args:
        repositories: As for ``Hub``.
        schedule: Which faults, and when; None for none.
        rate: Bytes in a second that one connection gets of a file; None for all there are.
        settings: As for ``Hub``.

    Attributes:
        played: The faults, in the order of playing.
    """

    def __init__(
        self,
        repositories: Iterable[Repository],
        schedule: Schedule | None = None,
        *,
        rate: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(repositories, **settings)
        self.played: list[Played] = []
        self._schedule, self._rate, self._deciding = schedule, rate, Lock()

    def answer(self, request: Request) -> Answer:
        answer = super().answer(request)
        with self._deciding:
            fault = None if self._schedule is None else self._schedule.fault(request, answer)
            if fault is not None:
                self.played.append(Played(fault, request))
        if fault is not None:
            answer = self._spoilt(fault, request, answer)
        if request.method == "HEAD":
            return replace(answer, pieces=())
        return answer if self._rate is None else replace(answer, pieces=_slow(answer.pieces, self._rate))

    def _spoilt(self, fault: Fault, request: Request, answer: Answer) -> Answer:
        if fault.kind is Kind.IGNORE_RANGE:
            return super().answer(_asking(request, None))
        if fault.kind is Kind.WRONG_RANGE:
            first, last = request.range or (None, None)
            assert first is not None
            return super().answer(_asking(request, f"bytes={first + fault.extra}-{'' if last is None else last}"))
        return spoilt(fault, answer)


def _at(request: Request, place: str) -> bool:
    return fnmatchcase(f"{request.server}{request.path}", f"*{place}")


def _asking(request: Request, wanted: str | None) -> Request:
    """The request with another Range."""
    headers = {name: value for name, value in request.headers.items() if name != "range"}
    return replace(request, headers=headers if wanted is None else {**headers, "range": wanted})


@dataclass(frozen=True)
class Pause:
    """Nothing for a while."""

    seconds: float

    def send(self, connection: socket.socket) -> Iterator[int]:
        time.sleep(self.seconds)
        return iter(())


def _slow(pieces: Iterable[Piece], rate: int) -> Iterator[Piece]:
    """The pieces, no more than a hundredth of a second's bytes at a time."""
    step = max(rate // 100, 1)
    for piece in pieces:
        while isinstance(piece, Part) and len(piece) > step:
            yield from (piece.first(step), Pause(0.01))
            piece = piece.after(step)
        yield piece
