"""The command line: parse, one task call, print.

Importing it, and asking any command for help, loads click and nothing heavier: tasks (and with them torch)
are imported where a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile

import click

from llamaconv import __version__
from llamaconv.cli.errors import explain
from llamaconv.cli.lazy import LazyGroup
from llamaconv.cli.output import fail
from llamaconv.cli.signals import terminable
from llamaconv.cli.streams import settle
from llamaconv.memory import give_back_freed_memory

__all__ = ["app", "main"]

_NAME = "llamaconv"


@click.group(
    cls=LazyGroup,
    modules={name: f"{__name__}.{name}" for name in ("download", "inspect", "convert", "quantize", "evaluate", "demo")},
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
    epilog="`llamaconv COMMAND --help` explains a command and its options.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def app() -> None:
    """Download, convert and quantize Llama-family checkpoints, block by block, in bounded memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows the program's name; None for the process's own.

    Returns:
        The exit code. Errors have been printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    json = "--json" in takewhile(lambda argument: argument != "--", arguments)
    with terminable():
        try:
            _dispatch(arguments)
        except click.exceptions.Exit as done:  # --help and --version, answered
            code = done.exit_code
        except SystemExit:
            raise
        except BaseException as error:
            code = fail(explain(error), json=json)
        else:
            code = 0
        settle()
    return code


def _dispatch(arguments: list[str]) -> None:
    # Not click's own main(): it would turn Ctrl-C and closed pipes into codes of its choice.
    if not arguments:
        with click.Context(app, info_name=_NAME, **app.context_settings) as context:
            click.echo(app.get_help(context), err=True)
            context.exit(2)
    with app.make_context(_NAME, arguments) as context:
        give_back_freed_memory()
        app.invoke(context)
