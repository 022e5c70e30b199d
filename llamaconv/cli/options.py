"""Options that commands share, and the types of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from llamaconv.cli.noise import logs
from llamaconv.cli.output import Screen
from llamaconv.hub.reference import is_hub_reference

__all__ = [
    "DTYPES",
    "PATH",
    "FiniteRange",
    "device_option",
    "given",
    "group_size",
    "refuse",
    "screened",
    "seq_len_option",
    "size",
    "text",
    "threads_option",
]

DTYPES = ("float32", "float16", "bfloat16")

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("", 1000), ("B", 1000), ("IB", 1024))
}


class LocalPath(click.Path):
    """A path. The empty string is refused: it would mean the current directory, as `"$UNSET"` did not.

    So is a repository of the Hub: it would become a folder named ``hf:``.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("The path is empty.", param, ctx)
        if isinstance(value, str) and is_hub_reference(value):
            self.fail("A path is needed here, not a repository of the Hub.", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """A number in a range. NaN, which no comparison rejects, and infinity are not numbers."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def text(value: str) -> str:
    """A text that is not empty."""
    if not value:
        raise click.BadParameter("The value is empty.")
    return value


def size(value: str) -> int:
    """Bytes: a number with a decimal unit (``5GB``) or a binary one (``512MiB``)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", value.strip(), re.ASCII)
    if not match or match[2].upper() not in _UNITS:
        raise click.BadParameter(f"{value!r} is not a size such as 5GB, 500MB or 512MiB.")
    count = int(Decimal(match[1]) * _UNITS[match[2].upper()])
    if count < 1:
        raise click.BadParameter(f"{value!r} is less than a byte.")
    return count


def group_size(value: str | int) -> int:
    """Columns that share a scale, or -1 for all of a row."""
    try:
        columns = int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a valid integer.") from None
    if columns != -1 and columns < 1:
        raise click.BadParameter(f"{columns} is neither positive nor -1.")
    return columns


def device(value: str) -> str:
    """Where to compute."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value, re.ASCII):
        raise click.BadParameter(f"{value!r} is not one of auto, cpu, cuda, cuda:N.")
    return value


PATH = LocalPath(path_type=Path)

device_option = click.option(
    "--device", type=device, default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N."
)
seq_len_option = click.option(
    "--seq-len",
    type=click.IntRange(min=2),
    show_default="2048, or the model's maximum if less",
    metavar="TOKENS",
    help="Length of a sequence.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    show_default="one per core",
    metavar="N",
    help="Worker threads. The result is the same for any number.",
)


def screened(body: Callable[..., None]) -> Callable[..., None]:
    """Add ``-q``, ``-v`` and ``--json``; ``body`` gets a :class:`Screen` for them, as ``screen``."""

    @click.option("-q", "--quiet", is_flag=True, help="No progress. Notes, errors and the result stay.")
    @click.option("-v", "--verbose", is_flag=True, help="Say what is being done, and let libraries speak.")
    @click.option("--json", "json", is_flag=True, help="Print the result, or the error, as one JSON object.")
    @wraps(body)
    def command(*, quiet: bool, verbose: bool, json: bool, **parameters: Any) -> None:
        if quiet and verbose:
            refuse("-q/--quiet and -v/--verbose exclude each other.")
        with logs(verbose):
            body(**parameters, screen=Screen(quiet, json))

    return command


def given(name: str) -> bool:
    """Whether the parameter ``name`` of the current command stands on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse(message: str) -> NoReturn:
    """End the command over arguments that cannot stand together.

    Raises:
        click.UsageError: Always.
    """
    raise click.UsageError(message, click.get_current_context())
