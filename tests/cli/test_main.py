from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llamaconv
from llamaconv.cli import app, main
from tests.cli.processes import command_line, environment, run

HEAVY = (
    "torch",
    "numpy",
    "rich",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "numba",
    "httpx2",
    "pydantic",
    "platformdirs",
)
COMMANDS = ["download", "inspect", "convert", "quantize", "evaluate", "demo"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """Help and version are answered without torch, numpy, rich, transformers or an HTTP client; how fast is printed."""
    script = (
        "import sys; from llamaconv.cli import main; code = main(sys.argv[1:]);"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules]); sys.exit(code)"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, env=environment()
    )
    print(f"llamaconv {' '.join(arguments)}: {time.perf_counter() - begun:.3f} s")
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert done.returncode == (0 if arguments else 2)


def test_python_dash_m_is_the_same_program() -> None:
    """`python -m llamaconv` calls itself llamaconv and gives its version."""
    done = subprocess.run(
        [sys.executable, "-m", "llamaconv", "--version"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"llamaconv {llamaconv.__version__}\n", "")


def test_the_help_lists_the_commands_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command stands there with one line that ends in a full stop."""
    assert main(["--help"]) == 0
    section = capsys.readouterr().out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in section] == COMMANDS == list(app.modules)
    assert all(line.endswith(".") for line in section)


def test_no_command_prints_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments there is nothing to do: the help, and the code of a usage error."""
    assert main([]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("Usage: llamaconv [OPTIONS] COMMAND [ARGS]...\n")


@pytest.mark.parametrize(
    ("arguments", "usage", "message", "hint"),
    [
        (
            ["quantise"],
            "llamaconv [OPTIONS] COMMAND [ARGS]...",
            "No such command 'quantise'. Did you mean 'quantize'?",
            "`llamaconv --help` lists arguments and options.",
        ),
        (
            ["inspect"],
            "llamaconv inspect [OPTIONS] PATH",
            "Missing argument 'PATH'.",
            "`llamaconv inspect --help` lists arguments and options.",
        ),
        (
            ["demo", "-q", "-v"],
            "llamaconv demo [OPTIONS]",
            "-q/--quiet and -v/--verbose exclude each other.",
            "`llamaconv demo --help` lists arguments and options.",
        ),
    ],
)
def test_usage_errors_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], usage: str, message: str, hint: str
) -> None:
    """What click refuses is printed as the other errors are, after the usage."""
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == f"Usage: {usage}\nError: {message}\nHint: {hint}\n"


def test_arguments_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """An argument cannot move the cursor by being wrong."""
    assert main(["inspect", "a", "b\x1b[31m"]) == 2
    assert "b\\x1b[31m" in capsys.readouterr().err


def test_an_option_before_the_command_is_sent_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    """-q, -v and --json belong to the commands, and the hint says so."""
    assert main(["-q", "inspect", "x"]) == 2
    assert "Options stand after the command" in capsys.readouterr().err


def test_usage_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json anywhere before `--`, even an argument that cannot be parsed gives one object."""
    assert main(["evaluate", "m", "--max-kl", "nan", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": {
            "type": "UsageError",
            "message": "Invalid value for '--max-kl': nan is not a finite number.",
            "hint": "`llamaconv evaluate --help` lists arguments and options.",
            "exit_code": 2,
        }
    }
    assert main(["inspect", "--", "a", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_a_result_is_one_json_object() -> None:
    """--json prints ASCII JSON and nothing else: null for what has no number, control characters escaped."""
    done = run("act", "result", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert json.loads(done.stdout) == {
        "name": "model.layers.0.\x1b[31mred\x07",
        "infinite": None,
        "list": [1, None],
        "path": "x",
    }


def test_a_result_for_people_is_a_table() -> None:
    """Rows without a value are left out, and control characters in names do not reach the terminal."""
    done = run("act", "result")
    assert (done.returncode, done.stdout, done.stderr) == (0, "name  model.layers.0.\\x1b[31mred\\x07\n", "")


def test_a_pipe_gets_long_names_whole() -> None:
    """Where stdout is no terminal, nothing is wrapped or cut."""
    lines = run("act", "big").stdout.splitlines()
    assert len(lines) == 2002
    assert lines[-1].split() == ["x" * 300, "1999"]


@pytest.mark.parametrize("mode", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_error(mode: list[str]) -> None:
    """As in `llamaconv ... | head -1`: no message, and the exit code of the work."""
    with subprocess.Popen(
        command_line("act", "big", *mode), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.parametrize("arguments", [["--help"], ["act", "--help"], ["act", "result"]])
def test_a_reader_that_was_never_there_is_no_error(arguments: list[str]) -> None:
    """Help into a closed pipe ends quietly too."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*arguments, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failure_keeps_its_code_whoever_listens() -> None:
    """With both streams gone, the exit code still tells of the error."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run("act", "GateError", "--json", stdout=writing, stderr=writing)
    os.close(writing)
    assert done.returncode == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["act", "result"], ["act", "big", "--json"]])
def test_a_result_that_cannot_be_written_exits_7(arguments: list[str]) -> None:
    """A full disk under a redirected stdout is an error of the output."""
    with open("/dev/full", "w") as full:
        done = run(*arguments, stdout=full)
    assert (done.returncode, done.stderr) == (7, "Error: standard output: No space left on device.\n")


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0)])
def test_closed_streams_do_not_matter(closed: str, code: int) -> None:
    """A process started without stdout or stderr does its work."""
    shell = ["sh", "-c", f'exec "$0" "$@" {closed}', *command_line("act", "work")]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_an_encoding_without_the_letters_escapes_them() -> None:
    """Names that the terminal's encoding cannot hold are printed with escapes, not an exception."""
    done = run("inspect", "nowhere/Modèle", env=environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0"))
    assert done.returncode == 3
    assert "nowhere/Mod\\xe8le" in done.stderr
