"""When to try again, where, and when to give up: one policy for API calls and files."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from llamaconv.errors import HubError, IntegrityError, LlamaconvError, NetworkError
from llamaconv.hub.answers import Hiccup
from llamaconv.hub.secrets import Secrets, shown_url

__all__ = ["Flaw", "Mirrors", "Patience", "Stopped", "Trials"]

_FIRST_WAIT = 0.5
"""Seconds before the first retry, at most; they double with each."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Other work has failed, or the user has stopped the run: this piece of work ends too."""


class Flaw(Exception):
    """Bytes that are not what the Hub promised.

    Args:
        reason: A phrase that ends a sentence.
    """

    def __init__(self, reason: str, **facts: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.facts = facts


@dataclass
class Patience:
    """What all retries of a download share.

    Attributes:
        retries: How often one thing may be tried again without progress.
        max_wait: Longest pause, in seconds.
        deadline: Seconds for all of it, from now on; None for none.
        secrets: What no message may show.
        used: Retries so far, of everything.
        mismatches: How often bytes were not what was promised.
    """

    retries: int
    max_wait: float
    deadline: float | None
    secrets: Secrets
    used: int = 0
    mismatches: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ends = None if self.deadline is None else time.monotonic() + self.deadline

    def stop(self) -> None:
        """End all waiting and, at their next check, all work."""
        self._stop.set()

    def check(self) -> None:
        """Raise if the work is to end.

        Raises:
            Stopped: It was stopped.
            NetworkError: The deadline has passed.
        """
        if self._stop.is_set():
            raise Stopped
        if self.is_over:
            raise self.too_late()

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        left = self.left()
        return left is not None and left <= 0

    def left(self) -> float | None:
        """Seconds until the deadline, None if there is none."""
        return None if self._ends is None else self._ends - time.monotonic()

    def pause(self, seconds: float) -> None:
        """Wait, or raise as ``check`` does.

        Raises:
            Stopped: It was stopped in the meantime.
        """
        if self._stop.wait(seconds):
            raise Stopped

    def too_late(self, because: str = "") -> NetworkError:
        """The error for a deadline that passes."""
        return NetworkError(
            f"The deadline of {self.deadline:g} s is over{f': {because}' if because else ''}.",
            hint="Run the same command again: it goes on from the byte where this one ended.",
            deadline=self.deadline,
        )

    def count(self, *, mismatch: bool) -> None:
        """One more retry."""
        with self._lock:
            self.used += 1
            self.mismatches += mismatch


class Mirrors:
    """The Hub and its mirrors, in the order of the user, or from the one on that answered last.

    Args:
        endpoints: Their addresses.
    """

    def __init__(self, endpoints: tuple[str, ...]) -> None:
        self._endpoints = endpoints
        self._preferred = endpoints[0]
        self._limited: dict[str, float] = {}

    def order(self, first: str | None = None) -> list[str]:
        """All of them, beginning with ``first``, or else with the one that answered last."""
        start = self._endpoints.index(first or self._preferred)
        return [*self._endpoints[start:], *self._endpoints[:start]]

    def limit(self, endpoint: str, seconds: float) -> None:
        """All requests to this one are to pause: it counts them together (429)."""
        self._limited[endpoint] = max(time.monotonic() + seconds, self._limited.get(endpoint, 0.0))

    def seconds_limited(self, endpoint: str) -> float:
        """How long it still is."""
        return max(self._limited.get(endpoint, 0.0) - time.monotonic(), 0.0)

    def answered(self, endpoint: str) -> None:
        """Begin with this one from now on."""
        self._preferred = endpoint


class Trials:
    """The attempts at one thing, at one endpoint after the other.

    Transport failures are forgiven by progress, mismatches are not; together they must not exceed the retries.

    Args:
        patience: Shared with the rest of the download.
        subject: What is attempted, for the messages.
        mirrors: The endpoints.
        first: The one to begin with, None for the one that answered last.
    """

    def __init__(self, patience: Patience, subject: str, mirrors: Mirrors, first: str | None = None) -> None:
        self._patience = patience
        self._subject = subject
        self._mirrors = mirrors
        self._endpoints = mirrors.order(first)
        self._resting: dict[str, float] = {}
        self._refusal: HubError | None = None
        self._failures = 0
        self._mismatches = 0

    @property
    def endpoint(self) -> str:
        """The one to ask now."""
        return self._endpoints[0]

    def blame(self, endpoint: str | None) -> None:
        """What fails next came from ``endpoint``, whichever was to be asked; None if that is not known."""
        if endpoint in self._endpoints:
            place = self._endpoints.index(endpoint)
            self._endpoints = [*self._endpoints[place:], *self._endpoints[:place]]

    def progressed(self) -> None:
        """Bytes arrived that never had: what went wrong before no longer counts."""
        self._failures = 0

    def run(self, attempt: Callable[[], Result]) -> Result:
        """Call ``attempt`` until it returns; it asks ``endpoint``.

        Raises:
            HubError: Every endpoint refused.
            NetworkError: The retries are used up, or the deadline does not leave time for another.
            IntegrityError: They are used up, and the last answer was wrong.
            Stopped: The work was stopped.
        """
        retrying = Retrying(
            retry=retry_if_exception_type((Hiccup, Flaw, HubError)),
            wait=self._prepare,
            sleep=self._patience.pause,
        )
        result: Result = retrying(self._checked, attempt)
        self._mirrors.answered(self.endpoint)
        return result

    def failed(self, fault: Hiccup | Flaw) -> float:
        """Count a failure, turn to the next endpoint, and say so.

        Returns:
            Seconds to wait.

        Raises:
            NetworkError: The retries are used up, or the deadline does not leave time for another.
            IntegrityError: They are used up, and the answer was wrong.
            Stopped: The work was stopped, which may be the reason for the failure.
        """
        self._patience.check()
        mismatch = isinstance(fault, Flaw)
        self._failures += not mismatch
        self._mismatches += mismatch
        failures = self._failures + self._mismatches
        if failures > self._patience.retries:
            raise self._given_up(fault) from None
        self._rest(failures, fault)
        seconds = self._seconds_of_rest()
        left = self._patience.left()
        if left is not None and seconds >= left:
            raise self._patience.too_late(f"{self._subject}: {fault.reason}") from None
        self._patience.count(mismatch=mismatch)
        self._tell(f"{fault.reason}; {self._plan(seconds)} (retry {failures} of {self._patience.retries})")
        return seconds

    def _checked(self, attempt: Callable[[], Result]) -> Result:
        self._patience.check()
        limited = self._mirrors.seconds_limited(self.endpoint)
        left = self._patience.left()
        if limited and (left is None or limited < left):
            self._patience.pause(limited)
        return attempt()

    def _prepare(self, state: RetryCallState) -> float:
        assert state.outcome is not None
        fault = state.outcome.exception()
        if isinstance(fault, HubError):
            self._refused(fault)
            left = self._patience.left()
            return self._seconds_of_rest() if left is None else min(self._seconds_of_rest(), max(left, 0.0))
        assert isinstance(fault, Hiccup | Flaw)
        return self.failed(fault)

    def _refused(self, refusal: HubError) -> None:
        """Ask this endpoint no more; the last one's refusal is final, and told in the first one's words."""
        self._refusal = self._refusal or refusal
        refuser = self._endpoints.pop(0)
        if not self._endpoints:
            raise self._refusal
        self._tell(f"{shown_url(refuser)} refused ({refusal.message}); asking {shown_url(self.endpoint)}")

    def _rest(self, failures: int, fault: Hiccup | Flaw) -> None:
        """Leave this endpoint alone for as long as it asks, or twice as long each time, and turn to the next."""
        asked_for = fault.retry_after if isinstance(fault, Hiccup) else None
        if asked_for is None:
            asked_for = _FIRST_WAIT * 2 ** min(failures - 1, 30) * random.uniform(0.5, 1.0)
        seconds = min(asked_for, self._patience.max_wait)
        self._resting[self.endpoint] = time.monotonic() + seconds
        if isinstance(fault, Hiccup) and fault.limited:
            self._mirrors.limit(self.endpoint, seconds)
        self._endpoints.append(self._endpoints.pop(0))

    def _seconds_of_rest(self) -> float:
        """How long the endpoint to ask now is to be left alone."""
        return max(self._resting.get(self.endpoint, 0.0) - time.monotonic(), 0.0)

    def _plan(self, seconds: float) -> str:
        where = f" at {shown_url(self.endpoint)}" if len(self._endpoints) > 1 else ""
        return f"trying again{where} in {seconds:.1f} s"

    def _given_up(self, fault: Hiccup | Flaw) -> LlamaconvError:
        retries = self._patience.retries
        tried = f"given up after {retries} {'retry' if retries == 1 else 'retries'}"
        message = self._patience.secrets.hide(f"{self._subject}: {fault.reason}; {tried}.")
        if isinstance(fault, Flaw):
            return IntegrityError(
                message,
                hint="Another --endpoint may have the right bytes.",
                **fault.facts,
            )
        return NetworkError(message, hint="Run the same command again: it goes on from the byte where this one ended.")

    def _tell(self, text: str) -> None:
        logger.warning("%s", self._patience.secrets.hide(f"{self._subject}: {text}"))
