"""SIGTERM as an exception, so that whoever holds a file or a lock lets go of it in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "if_interrupted", "terminable"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came. A KeyboardInterrupt, because it asks for the same."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, the first SIGTERM raises :class:`Terminated` in the main thread; further ones are ignored.

    ``timeout`` and process managers send it twice, to the process and to its group: the second must not cut
    short what the first has set going.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@contextmanager
def if_interrupted(explain: Callable[[], str]) -> Iterator[None]:
    """Say what an interruption within it leaves behind.

    Args:
        explain: Called after the interruption; what follows "Interrupted; ".
    """
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(explain())
        raise
