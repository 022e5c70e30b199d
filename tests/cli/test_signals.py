from __future__ import annotations

import json
import signal
import subprocess

import pytest

from llamaconv.cli.signals import Terminated, if_interrupted, terminable
from tests.cli.processes import command_line, environment


def interrupt(mode: list[str], *signals: signal.Signals) -> tuple[int, str, str]:
    with subprocess.Popen(
        command_line("act", "wait", *mode),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in signals:
            process.send_signal(number)
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_cleans_up(number: signal.Signals, code: int) -> None:
    """Contexts are left in order, then one line says what remains."""
    assert interrupt([], number) == (code, "let go\n", "Interrupted; DST is as it was before.\n")


def test_a_second_sigterm_does_not_cut_the_cleaning_short() -> None:
    """`timeout` sends it twice, to the process and to its group."""
    assert interrupt([], signal.SIGTERM, signal.SIGTERM)[:2] == (143, "let go\n")


def test_an_interruption_is_an_error_object_too() -> None:
    """With --json the object says so, with the exit code."""
    code, out, err = interrupt(["--json"], signal.SIGTERM)
    assert (code, err) == (143, "Interrupted; DST is as it was before.\n")
    assert json.loads(out.removeprefix("let go\n")) == {
        "error": {
            "type": "Interrupted",
            "message": "Interrupted; DST is as it was before.",
            "hint": None,
            "exit_code": 143,
        }
    }


def test_the_handler_is_given_back() -> None:
    """What SIGTERM did before, it does after."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not interrupted")
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_interruptions_are_explained() -> None:
    """Another error passes as it is."""
    with pytest.raises(ValueError, match=r"^other$") as caught, if_interrupted(lambda: "never"):
        raise ValueError("other")
    assert not hasattr(caught.value, "__notes__")
