from __future__ import annotations

import io
import re
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llamaconv.cli.bars import Bars, shortened
from llamaconv.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drawn(bars: Bars, width: int = 120) -> list[str]:
    """The lines on a terminal of so many columns, bars left out."""
    page = io.StringIO()
    Console(file=page, width=width).print(bars.display.get_renderable())
    return [re.sub("[━╸╺]", "", line).rstrip() for line in page.getvalue().splitlines()]


def shown(bars: Bars) -> list[tuple[str, float]]:
    """Each bar's name and how far it is."""
    return [(task.description, task.completed) for task in bars.display.tasks]


def on(clock: Clock, width: int = 120) -> Bars:
    return Bars(Console(file=io.StringIO(), width=width), clock)


def whole(done: float) -> Progress:
    return Progress("downloading", done, 300, "bytes")


def part(name: str, done: float, total: float = 100) -> Progress:
    return Progress(name, done, total, "bytes", within="downloading")


def test_parts_stand_below_the_whole_while_they_last() -> None:
    """Indented, in the order of their beginning; one that is done has no bar any more."""
    clock = Clock()
    bars = on(clock)
    for done in (0, 10, 20):
        bars(whole(2 * done))
        bars(part("a", done))
        bars(part("b", done))
        clock.now += 1
    assert shown(bars) == [("downloading", 40), ("  a", 20), ("  b", 20)]
    bars(part("a", 100))
    bars(whole(120))
    assert shown(bars) == [("downloading", 120), ("  b", 20)]
    bars(part("b", 100))
    assert shown(bars) == [("downloading", 120)]


def test_a_part_done_at_once_has_no_bar() -> None:
    """Its name could not be read; a moment later it can."""
    clock = Clock()
    bars = on(clock)
    bars(whole(0))
    bars(part("small", 0))
    assert shown(bars) == [("downloading", 0)]
    bars(part("small", 100))
    bars(part("empty", 0, 0))
    assert shown(bars) == [("downloading", 0)]


@pytest.mark.parametrize("lost", [300, 120])
def test_lost_ground_adds_no_bar(lost: float) -> None:
    """A part that starts over, and the whole with it, go on in their bars, from a new pace."""
    clock = Clock()
    bars = on(clock)
    for step in (whole(0), part("a", 0), whole(lost), part("a", 60)):
        bars(step)
        clock.now += 10
    bars(part("a", 0))
    bars(whole(50))
    assert shown(bars) == [("downloading", 50), ("  a", 0)]
    assert not any(task.finished for task in bars.display.tasks)
    clock.now += 2
    bars(part("a", 40))
    bars(whole(90))
    assert [line.split() for line in drawn(bars)] == [
        ["downloading", "90", "bytes", "of", "300", "bytes", "20", "bytes/s", "0:10", "left"],
        ["a", "40", "bytes", "of", "100", "bytes", "20", "bytes/s", "0:03", "left"],
    ]


def test_a_finished_part_may_start_over() -> None:
    """Its hash was wrong: it has a bar again."""
    bars = on(Clock())
    for step in (whole(0), part("a", 100), whole(100), part("a", 0), whole(0)):
        bars(step)
    assert shown(bars) == [("downloading", 0), ("  a", 0)]


def test_a_task_done_once_more_has_another_bar() -> None:
    """Where there are no parts, going back means a second run."""
    bars = on(Clock())
    for done in (0, 8, 0):
        bars(Progress("evaluating", done, 8, "blocks"))
    assert shown(bars) == [("evaluating", 8), ("evaluating", 0)]


def test_a_resumed_part_does_not_count_what_was_there() -> None:
    """The rate is that of what arrives."""
    clock = Clock()
    bars = on(clock)
    bars(part("a", 60))
    clock.now += 4
    bars(part("a", 80))
    assert drawn(bars)[0].split() == ["a", "80", "bytes", "of", "100", "bytes", "5", "bytes/s", "0:04", "left"]


def test_a_part_may_be_called_like_its_whole() -> None:
    """Names of files are anybody's."""
    clock = Clock()
    bars = on(clock)
    for done in (10, 20):
        bars(whole(done))
        bars(part("downloading", done))
        clock.now += 1
    bars(part("downloading", 100))
    assert shown(bars) == [("downloading", 20)]


@pytest.mark.parametrize("width", [80, 100, 102, 200])
def test_figures_are_whole_on_every_terminal(width: int) -> None:
    """From 80 columns on it is the names that are cut, and no line becomes two."""
    clock = Clock()
    bars = on(clock, width)
    names = "model-00012-of-00030.safetensors", "pytorch_model-00012-of-00030.bin", "a/b\x1b[31m/" + "c" * 300
    for done in (0, 1_234_000):
        bars(Progress("downloading", 100 * done, 139_800_000_000, "bytes"))
        for name in names:
            bars(part(name, done, 4_980_000_000))
        clock.now += 1
    lines = drawn(bars, width)
    assert len(lines) == 4
    assert lines[0].startswith("downloading ")
    assert lines[0].endswith("123 MB of 140 GB   123 MB/s  18:51 left")
    for line, name in zip(lines[1:], ("  model-00012", "  pytorch_model-00012", "  a/b\\x1b[31m/cc"), strict=True):
        assert line.startswith(name)
        assert line.endswith("1.23 MB of 4.98 GB 1.23 MB/s 1:07:14 left")


@given(st.text(max_size=60), st.integers(8, 50))
def test_short_names_keep_both_ends(name: str, width: int) -> None:
    """Of what fits, everything."""
    short = shortened(name, width)
    if len(name) <= width:
        assert short == name
    else:
        head, tail = short.split("…", 1) if "…" not in name else (short[0], short[-1])
        assert len(short) == width
        assert name.startswith(head)
        assert name.endswith(tail)


@given(
    st.text("ab/-_é", max_size=30),
    st.integers(1, 99_999),
    st.sampled_from([".bin", ".safetensors"]),
    st.integers(8, 50),
)
def test_short_names_keep_a_shards_number(start: str, number: int, kind: str, width: int) -> None:
    """Which of many it is, is what tells one from the other; of 99,999, in eight characters too."""
    name = f"{start}-{number:05}-of-99999{kind}"
    short = shortened(name, width)
    assert f"{number:05}" in short
    assert len(short) == min(len(name), width) or short.endswith("…")
    assert len(short) <= width
    assert short[:1] in (name[:1], "…")


def test_literal_short_names() -> None:
    """What is cut is shown as cut."""
    name = "pytorch_model-00012-of-00030.bin"
    assert [shortened(name, width) for width in (8, 19, 26, 32)] == [
        "p…00012…",
        "pytorch_mode…00012…",
        "pytorch_model-00012…30.bin",
        name,
    ]


@pytest.mark.parametrize("width", [60, 70, 79])
def test_a_narrow_terminal_shows_which_shard_it_is(width: int) -> None:
    """Below 80 columns too."""
    clock = Clock()
    bars = on(clock, width)
    for done in (0, 1_234_000):
        bars(part("model-00012-of-00030.safetensors", done, 4_980_000_000))
        clock.now += 1
    (line,) = drawn(bars, width)
    assert "00012" in line


def test_reports_may_come_from_many_threads() -> None:
    """Each part is shown where it is, and none is left behind."""
    clock = Clock()
    bars = on(clock)
    bars(whole(0))

    def work(name: str, last: int) -> None:
        for done in range(last + 1):
            bars(part(name, done))
            clock.now += 0.01

    lasts = {"a": 100, "b": 90, "c": 100, "d": 80}
    threads = [Thread(target=work, args=item) for item in lasts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in shown(bars)) == ["  b", "  d", "downloading"]
