from __future__ import annotations

import logging
import os

import pytest

from llamaconv.cli.noise import logs
from tests.cli.processes import environment, run


def test_warnings_of_ours_are_notes() -> None:
    """Without -v only our warnings are seen; libraries' records and Python's warnings are not."""
    done = run("act", "talk")
    assert (done.returncode, done.stdout) == (0, "\n")
    assert done.stderr == "Note: few tokens in model.layers.0.\\x1b[31mred\\x07\n"


def test_quiet_keeps_the_notes() -> None:
    """-q is about progress; what the user should know is still said."""
    assert run("act", "talk", "-q").stderr == "Note: few tokens in model.layers.0.\\x1b[31mred\\x07\n"


def test_verbose_lets_everybody_speak() -> None:
    """-v shows what we do, and what the libraries say under their own names."""
    lines = run("act", "talk", "-v").stderr.splitlines()
    assert lines[:3] == [
        "Note: reading",
        "Note: few tokens in model.layers.0.\\x1b[31mred\\x07",
        "other.library: look at me",
    ]
    assert "UserWarning: deprecated" in lines[3]


def test_a_warning_filter_of_the_user_holds() -> None:
    """PYTHONWARNINGS is obeyed."""
    assert "deprecated" in run("act", "talk", env=environment(PYTHONWARNINGS="always")).stderr


def test_loading_the_libraries_is_silent() -> None:
    """torch, transformers and bitsandbytes have nothing to say to a user who did not ask."""
    done = run("act", "libraries")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that libraries read are set only where they are not, and are gone afterwards."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with logs(verbose=False):
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        assert "HF_HUB_OFFLINE" not in os.environ
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_loggers_are_left_as_they_were() -> None:
    """Handlers, levels and propagation are restored, so that the library can be used in the same process."""
    ours, root = logging.getLogger("llamaconv"), logging.getLogger()
    before = ours.level, ours.propagate, list(ours.handlers), list(root.handlers)
    with logs(verbose=True):
        assert ours.level == logging.INFO
    assert (ours.level, ours.propagate, ours.handlers, root.handlers) == before


def test_a_malformed_record_does_not_end_the_run() -> None:
    """A library that logs with the wrong number of arguments is its own problem."""
    done = run("act", "slip", "-v")
    assert done.returncode == 0
    assert "Logging error" in done.stderr
