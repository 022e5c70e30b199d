"""Every error llamaconv raises on purpose, with the facts as attributes, a hint and an exit code.

The tree::

    LlamaconvError                      1
    ├── UsageError                      2   arguments that contradict each other or the files
    ├── InputError                      3   what was given cannot be used
    │   ├── CheckpointError                 missing, damaged or incomplete weights
    │   ├── ConfigError                     config.json missing, malformed, or at odds with the weights
    │   ├── UnsupportedError                well-formed, but not something we (or the target) can hold
    │   ├── CalibrationError                calibration or evaluation data that cannot be used
    │   └── NotFiniteError                  NaN or Inf in a weight of the source
    ├── HubError                        4   the Hub refused
    ├── NetworkError                    5   network or proxy gave up
    ├── IntegrityError                  6   bytes differ from what a hash or a comparison promised
    ├── OutputError                     7   the destination cannot take the result
    │   ├── OutputExistsError               it is there already
    │   ├── OutputLockedError               another process is writing it
    │   ├── DiskFullError                   not enough free space
    │   └── OutOfMemoryError                the plan needs more memory than there is
    └── NumericalError                  8   the arithmetic failed
        └── GateError                       a quality gate was not met

An error carries its facts in ``facts`` (JSON-safe values only), so that ``--json`` can report them.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "DiskFullError",
    "GateError",
    "HubError",
    "InputError",
    "IntegrityError",
    "LlamaconvError",
    "NetworkError",
    "NotFiniteError",
    "NumericalError",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "OutputLockedError",
    "UnsupportedError",
    "UsageError",
    "printable",
]


def printable(text: object) -> str:
    """``text`` with every control character escaped, fit for a terminal.

    Names come from files that others wrote; an escape sequence in one must not reach the screen.
    Newlines stay: our own messages use them to list several faults.
    """
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in str(text))


class LlamaconvError(Exception):
    """Root of the tree.

    Args:
        message: What went wrong, naming the file and the tensor; several faults stand one to a line.
        hint: What the user can do about it, one sentence.
        facts: JSON-safe details for machines.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def __str__(self) -> str:
        return self.message


class UsageError(LlamaconvError):
    exit_code = 2


class InputError(LlamaconvError):
    exit_code = 3


class CheckpointError(InputError):
    pass


class ConfigError(InputError):
    pass


class UnsupportedError(InputError):
    pass


class CalibrationError(InputError):
    pass


class NotFiniteError(InputError):
    pass


class HubError(LlamaconvError):
    exit_code = 4


class NetworkError(LlamaconvError):
    exit_code = 5


class IntegrityError(LlamaconvError):
    exit_code = 6


class OutputError(LlamaconvError):
    exit_code = 7


class OutputExistsError(OutputError):
    pass


class OutputLockedError(OutputError):
    pass


class DiskFullError(OutputError):
    pass


class OutOfMemoryError(OutputError):
    pass


class NumericalError(LlamaconvError):
    exit_code = 8


class GateError(NumericalError):
    pass
