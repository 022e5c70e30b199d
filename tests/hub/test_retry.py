"""When to try again, where, and when to give up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from llamaconv.errors import HubError, IntegrityError, NetworkError
from llamaconv.hub.answers import Hiccup
from llamaconv.hub.retry import Flaw, Mirrors, Patience, Stopped, Trials
from llamaconv.hub.secrets import Secrets

HUB, MIRROR = "http://hub:1", "http://mirror:2"


def patience(retries: int = 8, max_wait: float = 0.001, deadline: float | None = None) -> Patience:
    return Patience(retries, max_wait, deadline, Secrets("s3cr3t"))


class Scripted:
    """An attempt that raises what it is told, and notes whom it asked."""

    def __init__(self, trials: Trials, *outcomes: Exception | str) -> None:
        self.trials = trials
        self.outcomes = list(outcomes)
        self.asked: list[str] = []

    def __call__(self) -> str:
        self.asked.append(self.trials.endpoint)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def test_as_often_as_said_and_no_more() -> None:
    """With 3 retries the fourth failure is the last, and told with what it was."""
    trials = Trials(patience(3), "config.json", Mirrors((HUB,)))
    attempt = Scripted(trials, *[Hiccup("the connection was reset")] * 4)
    with pytest.raises(NetworkError) as caught:
        trials.run(attempt)
    assert str(caught.value) == "config.json: the connection was reset; given up after 3 retries."
    assert caught.value.hint == "Run the same command again: it goes on from the byte where this one ended."
    assert len(attempt.asked) == 4


def test_progress_forgives_transport_faults_and_not_mismatches() -> None:
    """Bytes that arrived reset the count of broken connections; wrong bytes stay counted."""
    trials = Trials(patience(2), "config.json", Mirrors((HUB,)))
    for _ in range(5):
        trials.failed(Hiccup("it broke"))
        trials.progressed()
    trials.failed(Flaw("it is wrong"))
    trials.progressed()
    trials.failed(Flaw("it is wrong"))
    with pytest.raises(IntegrityError, match=r"^config\.json: it is wrong; given up after 2 retries\.$") as caught:
        trials.failed(Flaw("it is wrong", file="config.json"))
    assert caught.value.facts == {"file": "config.json"}
    assert caught.value.exit_code == 6


def test_each_retry_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """It says what, why, when, how many there have been, and no secret."""
    trials = Trials(patience(), "config.json", Mirrors((HUB,)))
    assert trials.run(Scripted(trials, Hiccup("hub:1 said s3cr3t"), "done")) == "done"
    assert caplog.messages == ["config.json: hub:1 said ***; trying again in 0.0 s (retry 1 of 8)"]
    assert caplog.records[0].levelno == logging.WARNING


def test_mirrors_take_turns(caplog: pytest.LogCaptureFixture) -> None:
    """What fails at the Hub is asked of the mirror at once, and what works there is asked there first from then on."""
    mirrors = Mirrors((HUB, MIRROR))
    trials = Trials(patience(max_wait=60), "config.json", mirrors)
    attempt = Scripted(trials, Hiccup("hub:1 answered 503", 3600.0), "done")
    assert trials.run(attempt) == "done"
    assert attempt.asked == [HUB, MIRROR]
    assert caplog.messages == [
        "config.json: hub:1 answered 503; trying again at http://mirror:2 in 0.0 s (retry 1 of 8)"
    ]
    assert Trials(patience(), "next", mirrors).endpoint == MIRROR
    assert Trials(patience(), "next", mirrors, first=HUB).endpoint == HUB


def test_refusals_are_not_retried(caplog: pytest.LogCaptureFixture) -> None:
    """A mirror that refuses is not asked again; if all refuse, the first refusal is told."""
    trials = Trials(patience(), "config.json", Mirrors((HUB, MIRROR)))
    attempt = Scripted(trials, HubError("No such file."), Hiccup("it broke"), HubError("Not here either."))
    with pytest.raises(HubError, match=r"^No such file\.$"):
        trials.run(attempt)
    assert attempt.asked == [HUB, MIRROR, MIRROR]
    assert caplog.messages[0] == "config.json: http://hub:1 refused (No such file.); asking http://mirror:2"


@pytest.mark.parametrize(("asked_for", "longest", "least", "most"), [(7.0, 60.0, 7.0, 7.0), (1e9, 5.0, 5.0, 5.0)])
def test_retry_after_is_obeyed_up_to_the_longest_wait(
    asked_for: float, longest: float, least: float, most: float
) -> None:
    """The server says how long, the user says how long at most."""
    trials = Trials(patience(max_wait=longest), "config.json", Mirrors((HUB,)))
    assert least - 0.1 <= trials.failed(Hiccup("busy", asked_for)) <= most


def test_waits_double_with_jitter() -> None:
    """Without Retry-After the pause doubles from half a second on, and is shortened at random by up to a half."""
    trials = Trials(patience(max_wait=3.0), "config.json", Mirrors((HUB,)))
    waits = [trials.failed(Hiccup("it broke")) for _ in range(5)]
    for wait, longest in zip(waits, (0.5, 1.0, 2.0, 3.0, 3.0), strict=True):
        assert longest / 2 - 0.1 <= wait <= longest
    assert len(set(waits)) == 5


def test_deadline_ends_it_before_a_pause_that_would_pass_it() -> None:
    """Nobody waits for what comes too late."""
    trials = Trials(patience(max_wait=60, deadline=5), "config.json", Mirrors((HUB,)))
    began = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        trials.run(Scripted(trials, Hiccup("hub:1 answered 429", 30.0)))
    assert str(caught.value) == "The deadline of 5 s is over: config.json: hub:1 answered 429."
    assert caught.value.facts == {"deadline": 5}
    assert time.monotonic() - began < 2


def test_passed_deadline_ends_all_work() -> None:
    """Whoever checks after it is told."""
    late = patience(deadline=0.01)
    time.sleep(0.02)
    with pytest.raises(NetworkError, match=r"^The deadline of 0\.01 s is over\.$"):
        late.check()


@pytest.mark.parametrize(
    "wait",
    [
        lambda shared: shared.pause(30),
        lambda shared: Trials(shared, "x", Mirrors((HUB,))).run(Raising(Hiccup("busy", 30.0))),
    ],
)
def test_stopping_ends_waiting(wait: Callable[[Patience], None]) -> None:
    """A pause of half a minute is over as soon as the work is stopped, and it is no failure of what waited."""
    shared = patience(max_wait=60)
    threading.Timer(0.05, shared.stop).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        wait(shared)
    assert time.monotonic() - began < 5


class Raising:
    """Raises the same each time."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self) -> str:
        raise self.error


def test_retries_are_counted() -> None:
    """The result tells how many there were of everything, and how many because of wrong bytes."""
    shared = patience()
    trials = Trials(shared, "config.json", Mirrors((HUB,)))
    trials.run(Scripted(trials, Hiccup("it broke"), Flaw("it is wrong"), "done"))
    assert (shared.used, shared.mismatches) == (2, 1)
