"""The two streams: results go to stdout, everything else to stderr."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import TextIO

import click

from llamaconv.errors import OutputError, printable

__all__ = ["emit", "note", "reader_gone", "settle"]


def emit(text: str) -> None:
    """Write ``text`` and a newline to stdout. A reader that has gone away is no error: the work is done.

    Raises:
        OutputError: stdout is a file, and it cannot be written.
    """
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        _abandon(sys.stdout)
    except OSError as error:
        _abandon(sys.stdout)
        raise OutputError(f"standard output: {error.strerror}.") from error


def note(text: str, *, label: str = "", color: str = "yellow") -> None:
    """Write ``text`` and a newline to stderr, control characters escaped; never fails.

    Not having a reader any more is no reason to give up the work.
    """
    if label and _colored(sys.stderr):
        label = click.style(label, fg=color, bold=True)
    with suppress(OSError):
        _write(sys.stderr, label + printable(text))


def reader_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError):  # closed, or no file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are told unasked
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def settle() -> None:
    """Flush both streams, so that the interpreter's own flush at exit has nothing left to complain of."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            _abandon(stream)


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed by whoever started us
        return
    # A name may hold what the terminal's encoding does not.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _abandon(stream: TextIO) -> None:
    """Send what is still buffered to nowhere."""
    with suppress(OSError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _colored(stream: TextIO | None) -> bool:
    if stream is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()
