from __future__ import annotations

import json

import click
import pytest

from llamaconv import errors
from llamaconv.cli.errors import explain
from tests.cli.processes import run

CODES = {
    "UsageError": 2,
    "InputError": 3,
    "CheckpointError": 3,
    "ConfigError": 3,
    "UnsupportedError": 3,
    "CalibrationError": 3,
    "NotFiniteError": 3,
    "HubError": 4,
    "NetworkError": 5,
    "IntegrityError": 6,
    "OutputError": 7,
    "OutputExistsError": 7,
    "OutputLockedError": 7,
    "DiskFullError": 7,
    "OutOfMemoryError": 7,
    "NumericalError": 8,
    "GateError": 8,
}


def test_every_class_has_a_code_here() -> None:
    """The table above is the whole tree, less its root."""
    assert set(CODES) == {name for name in errors.__all__ if name.endswith("Error")} - {"LlamaconvError"}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_an_error_is_told_by_its_class(name: str, code: int) -> None:
    """Type, message, hint and code come from the error; its facts stand beside them and replace none."""
    kind = getattr(errors, name)
    failure = explain(kind("a.weight: bad", hint="Do this.", tensor="a.weight", exit_code="fact"))
    assert failure.to_json() == {
        "error": {
            "type": name,
            "message": "a.weight: bad",
            "hint": "Do this.",
            "exit_code": code,
            "tensor": "a.weight",
        }
    }
    assert failure.before == ""


@pytest.mark.parametrize("name", ["UsageError", "CheckpointError", "HubError", "GateError"])
def test_errors_go_to_stderr(name: str) -> None:
    """Message and hint, each fault on a line of its own, control characters escaped, no traceback."""
    done = run("act", name)
    assert done.returncode == CODES[name]
    assert done.stdout == ""
    assert done.stderr == (
        "Error: model.layers.0.\\x1b[31mred\\x07: bad shape\nlm_head.weight: missing\nHint: Look \\x1b[5mclosely.\n"
    )


def test_with_json_the_error_is_one_object_on_stdout() -> None:
    """The object has message and facts whole; stderr says the same to whoever reads the log."""
    done = run("act", "CheckpointError", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout) == {
        "error": {
            "type": "CheckpointError",
            "message": "model.layers.0.\x1b[31mred\x07: bad shape\nlm_head.weight: missing",
            "hint": "Look \x1b[5mclosely.",
            "exit_code": 3,
            "tensor": "model.layers.0.\x1b[31mred\x07",
        }
    }
    assert "\x1b" not in done.stdout
    assert done.stderr.startswith("Error: model.layers.0.\\x1b[31mred")


@pytest.mark.parametrize("mode", [[], ["--json"]])
def test_a_bug_keeps_its_traceback(mode: list[str]) -> None:
    """What nobody foresaw exits 1 with the traceback, escaped, and asks for a report."""
    done = run("act", "bug", *mode)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "Error: ValueError: no such thing: model.layers.0.\\x1b[31mred\\x07",
        "Hint: This is a bug in llamaconv: please report it with the lines above and `llamaconv --version`.",
    ]
    assert "\x1b" not in done.stderr
    if mode:
        assert json.loads(done.stdout)["error"]["exit_code"] == 1
        assert json.loads(done.stdout)["error"]["type"] == "ValueError"
    else:
        assert done.stdout == ""


def test_the_root_of_the_tree_is_a_bug() -> None:
    """An error of no class in particular has no exit code that would mean anything: it keeps its traceback."""
    failure = explain(errors.LlamaconvError("what?"))
    assert failure.exit_code == 1
    assert failure.before == "llamaconv.errors.LlamaconvError: what?"


def test_a_pipe_lost_in_the_work_is_a_bug() -> None:
    """A broken pipe is quiet only where it is the pipe that our output goes to."""
    done = run("act", "lost-pipe")
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


@pytest.mark.parametrize(
    ("what", "message"),
    [("out-of-memory", "Out of memory."), ("full-disk", "/volume/file: No space left on device.")],
)
def test_the_machine_ran_out(what: str, message: str) -> None:
    """Memory and disk that run out in mid-work are errors of the output, without a traceback."""
    done = run("act", what)
    assert done.returncode == 7
    assert done.stderr.splitlines()[0] == f"Error: {message}"


def test_torch_runs_out_of_memory_in_its_own_words() -> None:
    """Its CPU allocator raises a RuntimeError, told by its text; another RuntimeError is a bug."""
    text = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 1 byte"
    failure = explain(RuntimeError(text))
    assert (failure.exit_code, failure.type) == (7, "OutOfMemoryError")
    assert failure.message == f"Out of memory: {text}"
    assert explain(RuntimeError("shape mismatch")).exit_code == 1


def test_a_usage_error_without_a_context_is_told() -> None:
    """click raises some before it knows the command."""
    failure = explain(click.UsageError("what?"))
    assert (failure.message, failure.exit_code, failure.hint) == ("what?", 2, None)
