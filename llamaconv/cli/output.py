"""What a command shows: its result for people or for machines, or its error."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamaconv.cli.errors import Failure
from llamaconv.cli.progress import progress
from llamaconv.cli.streams import emit, note, reader_gone
from llamaconv.errors import OutputError
from llamaconv.progress import Report

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Screen", "as_json", "fail"]

_UNBOUNDED = 100_000  # columns where stdout is no terminal: a pipe gets every name whole


@dataclass(frozen=True)
class Screen:
    """What the user sees of a command.

    Attributes:
        quiet: No progress.
        json: The result as one JSON object.
    """

    quiet: bool
    json: bool

    def progress(self) -> AbstractContextManager[Report]:
        """The context in which a task may report its progress."""
        return progress(self.quiet)

    def result(
        self, result: Mapping[str, Any], render: Callable[[Mapping[str, Any]], Iterable[RenderableType]]
    ) -> None:
        """Print a result.

        Args:
            result: JSON-safe.
            render: Makes of it what a person reads.

        Raises:
            OutputError: stdout is a file, and it cannot be written.
        """
        emit(as_json(result) if self.json else _rendered(render(result)))


def fail(failure: Failure, *, json: bool) -> int:
    """Print an error, on stdout too where its reader is a machine, and return the exit code."""
    if failure.type == BrokenPipeError.__name__ and reader_gone():
        return 0  # whoever read the help has read enough
    if failure.before:
        note(failure.before)
    note(failure.message, label=failure.label, color="red")
    if failure.hint:
        note(failure.hint, label="Hint: ", color="cyan")
    if json:
        with suppress(OutputError):  # the exit code tells of the error that came first
            emit(as_json(failure.to_json()))
    return failure.exit_code


def as_json(value: Mapping[str, Any]) -> str:
    """JSON text, in ASCII: nothing in it can move a terminal's cursor, and any encoding can hold it."""
    return json.dumps(_finite(value), indent=2, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    """``value`` with null for what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _rendered(parts: Iterable[RenderableType]) -> str:
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    encoding = (sys.stdout and sys.stdout.encoding) or "utf-8"  # decides what lines are drawn with
    page = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
    console = Console(
        file=page,
        width=None if terminal else _UNBOUNDED,
        force_terminal=terminal,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part)
    page.seek(0)
    return "\n".join(line.rstrip() for line in page.read().splitlines())
