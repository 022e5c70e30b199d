"""Threads that work for the main one, which stays free to be interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from queue import Empty, SimpleQueue

__all__ = ["together"]

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_END = 2.0
"""For work to notice that it is to end; a connection that is still being made may take longer."""


def together(
    work: Callable[[], None], count: int, name: str, *, halt: Callable[[], None], halted: Callable[[], bool]
) -> None:
    """Call ``work`` in so many threads, and wait for all of them; they keep their failures for the caller.

    The waiting thread takes no lock of theirs: an interruption that is raised just after it did would leave it locked.

    Args:
        work: Called once in each thread; returns soon after the work was halted.
        count: Of threads.
        name: Of each, with its number.
        halt: Called if the waiting is interrupted.
        halted: Whether the work is to end; what does not end soon after is left to itself.
    """
    ended: SimpleQueue[None] = SimpleQueue()

    def member() -> None:
        try:
            work()
        finally:
            ended.put(None)

    crew = [threading.Thread(target=member, name=f"{name} {number}", daemon=True) for number in range(count)]
    try:
        for one in crew:
            one.start()
        _await(ended, count, halted)
    except BaseException:
        halt()
        until = time.monotonic() + _SECONDS_TO_END
        for one in crew:
            if one.ident is not None:
                one.join(max(until - time.monotonic(), 0.0))
        raise


def _await(ended: SimpleQueue[None], count: int, halted: Callable[[], bool]) -> None:
    until = inf
    while count and time.monotonic() < until:
        with suppress(Empty):
            ended.get(timeout=_SECONDS_BETWEEN_LOOKS)
            count -= 1
        if until == inf and halted():
            until = time.monotonic() + _SECONDS_TO_END
