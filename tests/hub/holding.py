"""A Hub that stops in the middle of a large file until it is told to go on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import Event
from types import TracebackType

from llamaconv.demo.answers import Answer, Part, Piece, Request
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository

__all__ = ["HoldingHub"]

_PATIENCE = 60.0  # seconds


class HoldingHub(Hub):
    """Silent after the first bytes that its storage sends.

    Args:
        repositories: As for ``Hub``.
        after: How many bytes.
    """

    def __init__(self, repositories: list[Repository], *, after: int) -> None:
        super().__init__(repositories)
        self._after = after
        self._holding, self._released = Event(), Event()

    def answer(self, request: Request) -> Answer:
        answer = super().answer(request)
        if request.server == "hub" or self._holding.is_set() or self._released.is_set():
            return answer
        return replace(answer, pieces=list(self._held(answer.pieces)))

    def wait(self) -> None:
        """Return once it is silent."""
        assert self._holding.wait(_PATIENCE)

    def release(self) -> None:
        """Go on."""
        self._released.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        super().__exit__(kind, error, trace)

    def _held(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            assert isinstance(piece, Part)
            yield from (piece.first(self._after), _Hold(self._holding, self._released), piece.after(self._after))


@dataclass(frozen=True)
class _Hold:
    """Nothing until the Hub is released."""

    holding: Event
    released: Event

    def send(self, connection: socket.socket) -> Iterator[int]:
        self.holding.set()
        self.released.wait(_PATIENCE)
        return iter(())
