"""A command that does what a test asks of it, as a real one might in its worst hour."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import click

from llamaconv import errors
from llamaconv.cli.options import screened
from llamaconv.cli.output import Screen
from llamaconv.cli.signals import if_interrupted
from llamaconv.cli.tables import facts, grid
from llamaconv.progress import Progress

NAME = "model.layers.0.\x1b[31mred\x07"


@click.command("act")
@click.argument("what")
@screened
def command(what: str, screen: Screen) -> None:
    """Do WHAT."""
    _ACTIONS[what](screen)


def _result(screen: Screen) -> None:
    result = {"name": NAME, "infinite": float("inf"), "list": [1, float("nan")], "path": Path("x")}
    screen.result(result, lambda result: [facts([("name", result["name"]), ("absent", None)])])


def _big(screen: Screen) -> None:
    rows = [("x" * 300, str(row)) for row in range(2000)]
    screen.result({"rows": rows}, lambda result: [grid(("long", "number"), result["rows"])])


def _work(screen: Screen) -> None:
    with screen.progress() as report:
        for done in range(4):
            report(Progress("quantizing", done, 4, "blocks", NAME))
            if done == 2:
                logging.getLogger("llamaconv.deep").warning("half of it is done")
            time.sleep(0.15)
    screen.result({"done": True}, lambda result: [facts([("done", "yes")])])


def _talk(screen: Screen) -> None:
    logging.getLogger("llamaconv.tasks.some").info("reading")
    logging.getLogger("llamaconv.tasks.some").warning("few tokens in %s", NAME)
    logging.getLogger("other.library").warning("look at me")
    warnings.warn("deprecated", stacklevel=1)
    screen.result({}, lambda result: [])


def _slip(screen: Screen) -> None:
    logging.getLogger("other.library").warning("%d and %d", 1)  # noqa: PLE1206


def _wait(screen: Screen) -> None:
    try:
        with if_interrupted(lambda: "DST is as it was before."):
            print("ready", flush=True)
            time.sleep(60)
    finally:
        time.sleep(0.3)
        print("let go", flush=True)


def _bug(screen: Screen) -> None:
    raise ValueError(f"no such thing: {NAME}")


def _out_of_memory(screen: Screen) -> None:
    raise MemoryError


def _full_disk(screen: Screen) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/volume/file")


def _lost_pipe(screen: Screen) -> None:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _libraries(screen: Screen) -> None:
    import bitsandbytes  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    assert "torch" in sys.modules


def _raising(kind: type[errors.LlamaconvError]) -> Callable[[Screen], None]:
    def act(screen: Screen) -> None:
        raise kind(
            f"{NAME}: bad shape\nlm_head.weight: missing",
            hint="Look \x1b[5mclosely.",
            tensor=NAME,
            exit_code="a fact of that name",
        )

    return act


_ACTIONS: dict[str, Callable[[Screen], None]] = {
    "result": _result,
    "big": _big,
    "work": _work,
    "talk": _talk,
    "slip": _slip,
    "wait": _wait,
    "bug": _bug,
    "out-of-memory": _out_of_memory,
    "full-disk": _full_disk,
    "lost-pipe": _lost_pipe,
    "libraries": _libraries,
    **{name: _raising(getattr(errors, name)) for name in errors.__all__ if name.endswith("Error")},
}
