"""What each exception means to the user: a message, a hint, an exit code."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from llamaconv.cli.signals import Terminated
from llamaconv.errors import DiskFullError, LlamaconvError, OutOfMemoryError, OutputError

__all__ = ["Failure", "explain"]


@dataclass(frozen=True)
class Failure:
    """An error as it is told.

    Attributes:
        type: Name of the error's class.
        message: What went wrong; several faults stand one to a line.
        exit_code: Of the process.
        hint: What the user can do about it.
        facts: For machines.
        before: Lines that precede the message: a traceback, the usage.
        label: What precedes the message in its line.
    """

    type: str
    message: str
    exit_code: int
    hint: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    before: str = ""
    label: str = "Error: "

    def to_json(self) -> dict[str, object]:
        """The object printed with ``--json``; facts stand beside the message and never replace it."""
        told = {"type": self.type, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}
        return {"error": {**told, **{name: fact for name, fact in self.facts.items() if name not in told}}}


def explain(error: BaseException) -> Failure:
    """What to tell of ``error``; one that is not in the table is a bug and keeps its traceback."""
    for kind, tell in _TABLE:
        if isinstance(error, kind) and (failure := tell(error)) is not None:
            return failure
    return _bug(error)


def _ours(error: LlamaconvError) -> Failure | None:
    if type(error) is LlamaconvError:
        return None
    return Failure(type(error).__name__, error.message, error.exit_code, error.hint, error.facts)


def _usage(error: click.UsageError) -> Failure:
    context = error.ctx
    if context is None:
        return Failure("UsageError", error.format_message(), error.exit_code)
    hint = f"`{context.command_path} --help` lists arguments and options."
    if context.parent is None and isinstance(error, click.NoSuchOption):
        hint = "Options stand after the command: `llamaconv COMMAND --help` lists them."
    return Failure("UsageError", error.format_message(), error.exit_code, hint, before=context.get_usage())


def _interrupted(error: KeyboardInterrupt) -> Failure:
    left = " ".join(getattr(error, "__notes__", ())) or "nothing was written."
    code = 143 if isinstance(error, Terminated) else 130
    return Failure("Interrupted", f"Interrupted; {left}", code, label="")


def _memory(error: BaseException) -> Failure:
    return Failure(
        OutOfMemoryError.__name__,
        f"Out of memory: {error}" if str(error) else "Out of memory.",
        OutOfMemoryError.exit_code,
        "Fewer --samples or a shorter --seq-len need less, where the command has them.",
    )


def _torch_memory(error: RuntimeError) -> Failure | None:
    # Told by name and text: torch need not have been imported, and its CPU allocator has no class of its own.
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return _memory(error)
    return None


def _disk(error: OSError) -> Failure | None:
    # Only writing can fail like this; other faults of files have been given their meaning where they arose.
    if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}:
        return None
    kind = DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else OutputError
    where = f"{error.filename}: " if error.filename else ""
    return Failure(kind.__name__, f"{where}{error.strerror}.", kind.exit_code)


def _bug(error: BaseException) -> Failure:
    return Failure(
        type(error).__name__,
        "".join(traceback.format_exception_only(error)).strip(),
        1,
        "This is a bug in llamaconv: please report it with the lines above and `llamaconv --version`.",
        before="".join(traceback.format_exception(error)).rstrip(),
    )


# The first that fits and does not decline by returning None.
_TABLE: tuple[tuple[type[BaseException], Callable[[Any], Failure | None]], ...] = (
    (LlamaconvError, _ours),
    (click.UsageError, _usage),
    (KeyboardInterrupt, _interrupted),
    (MemoryError, _memory),
    (RuntimeError, _torch_memory),
    (OSError, _disk),
)
