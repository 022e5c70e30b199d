from __future__ import annotations

import os
import pty
import re
import select
import subprocess
from itertools import pairwise
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.cli.progress import Lines, Pace, Stopwatch, done_of, progress
from llamaconv.progress import Progress, silent
from tests.cli.processes import command_line, environment, run


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_now_and_then() -> None:
    """The first report at once, then none for ten seconds; each line has amount, rate, time left and detail."""
    clock, lines = Clock(), list[str]()
    report = Lines(lines.append, clock)
    for done in range(9):
        report(Progress("quantizing", done, 32, "blocks", f"model.layers.{done}"))
        clock.now += 2.5
    assert lines == [
        "quantizing: 0 of 32 blocks, model.layers.0",
        "quantizing: 4 of 32 blocks, 2.5 s each, 1:10 left, model.layers.4",
        "quantizing: 8 of 32 blocks, 2.5 s each, 1:00 left, model.layers.8",
    ]


def test_a_log_begins_with_something_done_and_says_when_all_is() -> None:
    """With a pace worth telling; the end of a task is told whenever it comes, once each time it is reached."""
    clock, lines = Clock(), list[str]()
    report = Lines(lines.append, clock)
    for done in (0, 1, 250_000, 400_000, 500_000, 500_000, 100_000, 500_000):
        report(Progress("downloading", done, 500_000, "bytes"))
        clock.now += 0.5
    report(Progress("verifying", 0, 3, "tensors"))
    report(Progress("verifying", 3, 3, "tensors"))
    assert lines == [
        "downloading: 250 kB of 500 kB, 250 kB/s, 0:01 left",
        "downloading: 500 kB of 500 kB, 250 kB/s",
        "downloading: 500 kB of 500 kB, 800 kB/s",
        "verifying: 3 of 3 tensors",
    ]


@pytest.mark.parametrize("total", [0, 5])
def test_a_task_with_nothing_to_do_has_no_line(total: int) -> None:
    """It was at its end before it began."""
    lines = list[str]()
    report = Lines(lines.append, Clock())
    for _ in range(2):
        report(Progress("downloading", total, total, "bytes", "all there"))
    assert lines == []


def test_a_log_has_no_lines_for_parts() -> None:
    """The whole counts what they do."""
    clock, lines = Clock(), list[str]()
    report = Lines(lines.append, clock)
    for done in range(3):
        report(Progress("model.safetensors", done, 4, "bytes", within="downloading"))
        report(Progress("downloading", done, 8, "bytes"))
        clock.now += 10
    assert lines == [
        "downloading: 1 bytes of 8 bytes, 0.1 bytes/s, 1:10 left",
        "downloading: 2 bytes of 8 bytes, 0.1 bytes/s, 1:00 left",
    ]


@given(st.lists(st.floats(0, 15), max_size=50))
def test_lines_are_ten_seconds_apart(pauses: list[float]) -> None:
    """Whatever the pace of the reports, and whatever tasks they are of."""
    clock, times = Clock(), list[float]()
    report = Lines(lambda line: times.append(clock.now), clock)
    for place, pause in enumerate(pauses):
        report(Progress(f"task {place % 3}", place, 50, "blocks"))
        clock.now += pause
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))


def test_lines_from_many_threads_do_not_crowd() -> None:
    """Whoever comes first writes; nobody writes again within ten seconds."""
    lines: list[str] = []
    report = Lines(lines.append, Clock())
    threads = [Thread(target=report, args=(Progress(f"task {number}", 0, 1, "blocks", "it"),)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("pace", "unit", "words"),
    [
        (Pace(), "blocks", ""),
        (Pace(2.5, 1), "blocks", "2.5 blocks/s"),
        (Pace(0.08, 1), "blocks", "12.5 s each"),
        (Pace(123_400_000, 1), "bytes", "123 MB/s"),
        (Pace(1e12, 1), "work", ""),
    ],
)
def test_rates_are_in_words(pace: Pace, unit: str, words: str) -> None:
    """Bytes in decimal units; slow work in seconds for each; work without a unit has no rate to read."""
    assert pace.describe(unit) == words


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Progress("t", 3, 8, "blocks"), "3 of 8 blocks"),
        (Progress("t", 1500, 12000, "samples"), "1,500 of 12,000 samples"),
        (Progress("t", 1.5e9, 1.4e11, "bytes"), "1.5 GB of 140 GB"),
        (Progress("t", 1e12, 4e12, "work"), "25 %"),
        (Progress("t", 0, 0, "work"), "100 %"),
        (Progress("t", 0, 0, "blocks"), "0 of 0 blocks"),
    ],
)
def test_amounts_are_in_words(step: Progress, words: str) -> None:
    """How far a task is, in its unit; an empty task is done."""
    assert done_of(step) == words


def test_pace_is_measured_from_where_a_task_began() -> None:
    """A resumed task does not count what was there; one done once more is measured afresh."""
    clock = Clock()
    stopwatch = Stopwatch(clock)
    assert stopwatch.measure(Progress("t", 6, 10, "blocks")) == Pace()
    clock.now += 4
    assert stopwatch.measure(Progress("t", 8, 10, "blocks")) == Pace(0.5, 4)
    clock.now += 4
    assert stopwatch.measure(Progress("other", 0, 10, "blocks")) == Pace()
    assert stopwatch.restarted(Progress("t", 0, 10, "blocks"))
    assert stopwatch.measure(Progress("t", 0, 10, "blocks")) == Pace()
    clock.now += 1
    assert stopwatch.measure(Progress("t", 1, 10, "blocks")) == Pace(1, 9)


def test_parts_have_a_pace_of_their_own() -> None:
    """A part is not mistaken for a task, or for a part of another one, that has the same name."""
    clock = Clock()
    stopwatch = Stopwatch(clock)
    for within in ("", "one", "other"):
        stopwatch.measure(Progress("t", 0, 10, "bytes", within=within))
    clock.now += 1
    assert stopwatch.measure(Progress("t", 5, 10, "bytes", within="one")) == Pace(5, 1)
    assert not stopwatch.restarted(Progress("t", 1, 10, "bytes", within="other"))
    assert not stopwatch.restarted(Progress("t", 1, 10, "bytes"))


def test_quiet_is_silent() -> None:
    """With -q there is nothing to call but silence."""
    with progress(quiet=True) as report:
        assert report is silent
    assert run("act", "work", "-q").stderr == "Note: half of it is done\n"


def test_without_a_terminal_there_are_no_bars() -> None:
    """A log has lines and notes, and not one control character."""
    done = run("act", "work", env=environment(FORCE_COLOR="1", TERM="xterm"))
    assert (done.returncode, done.stdout) == (0, "done  yes\n")
    assert done.stderr == ("quantizing: 0 of 4 blocks, model.layers.0.\\x1b[31mred\\x07\nNote: half of it is done\n")


def on_a_terminal(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run with stderr a terminal of 100 columns; the exit code and what the terminal got."""
    mine, theirs = pty.openpty()
    env = environment(COLUMNS="100", **variables)
    with subprocess.Popen(
        command_line(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs, env=env
    ) as process:
        os.close(theirs)
        got = b""
        while select.select([mine], [], [], 30)[0]:
            try:
                got += os.read(mine, 4096)
            except OSError:  # Linux's way to say that the other side is closed
                break
    os.close(mine)
    return process.returncode, got.decode()


def test_a_terminal_gets_bars() -> None:
    """Bars with amount and detail; a note stands on a line of its own; the bars are gone at the end."""
    code, got = on_a_terminal("act", "work", TERM="xterm")
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", got)
    assert re.search(r"quantizing +━+", plain)
    assert re.search(r"[23] of 4 blocks +.* s/?|blocks/s", plain)
    assert "model.layers.0.\\x1b[31mred" in plain
    assert re.search(r"(^|[\r\n])Note: half of it is done *\r?\n", plain)
    assert got.endswith(("\x1b[2K", "\x1b[?25h"))


def test_a_dumb_terminal_gets_lines() -> None:
    """Without cursor movements there are no bars."""
    code, got = on_a_terminal("act", "work", TERM="dumb")
    assert code == 0
    assert "\x1b" not in got
    assert got.startswith("quantizing: 0 of 4 blocks")


def test_errors_are_in_color_on_a_terminal_only() -> None:
    """The label is red there, unless NO_COLOR says otherwise."""
    assert on_a_terminal("act", "GateError", TERM="xterm")[1].startswith("\x1b[31m\x1b[1mError: \x1b[0mmodel")
    assert on_a_terminal("act", "GateError", TERM="xterm", NO_COLOR="1")[1].startswith("Error: model")
