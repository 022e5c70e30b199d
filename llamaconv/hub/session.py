"""What a download talks to, and what it must not say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, TypeVar

from llamaconv.errors import LlamaconvError
from llamaconv.hub.client import Client
from llamaconv.hub.retry import Mirrors, Patience
from llamaconv.hub.secrets import Secrets
from llamaconv.hub.settings import DownloadSettings
from llamaconv.hub.together import together

__all__ = ["Session", "offline", "session"]


_THE_HUB = "https://huggingface.co"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Session:
    """What a download talks to, where, and for how long."""

    client: Client
    mirrors: Mirrors
    patience: Patience

    def call(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns or raises, by the deadline, however long a name lookup or a connection takes.

        Raises:
            NetworkError: The deadline passed before.
        """
        outcome: list[Callable[[], Result]] = []

        def run() -> None:
            try:
                result = work()
            except BaseException as error:
                outcome.append(partial(_raise, error))
            else:
                outcome.append(lambda: result)

        together(run, 1, "question", halt=self.halt, halted=lambda: self.patience.is_over)
        if not outcome:
            raise self.patience.too_late()
        return outcome[0]()

    def halt(self) -> None:
        """End all waiting and reading, from any thread."""
        self.patience.stop()
        self.client.interrupt()


@contextmanager
def session(settings: DownloadSettings) -> Iterator[Session]:
    """The context of a download. No error leaves it with a secret in its text or facts.

    Raises:
        UsageError: The token or the proxy cannot be one.
    """
    import huggingface_hub

    constants = huggingface_hub.constants
    token = settings.token or None
    if settings.token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        token = huggingface_hub.get_token()
    endpoints = settings.endpoints or (constants.ENDPOINT or _THE_HUB,)
    secrets = Secrets(*(secret for secret in (token,) if secret))
    patience = Patience(settings.retries, settings.max_wait, settings.deadline, secrets)
    try:
        with Client(
            timeout=settings.timeout, token=token, proxy=settings.proxy, secrets=secrets, lifetime=settings.deadline
        ) as client:
            yield Session(client, Mirrors(tuple(dict.fromkeys(endpoints))), patience)
    except LlamaconvError as error:  # whatever a server made us quote
        error.message, error.hint = secrets.hide(error.message), error.hint and secrets.hide(error.hint)
        error.args = (error.message,)
        error.facts = {
            name: secrets.hide(fact) if isinstance(fact, str) else fact for name, fact in error.facts.items()
        }
        raise


def offline(settings: DownloadSettings) -> bool:
    """Whether the network must not be asked."""
    if settings.offline is not None:
        return settings.offline
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _raise(error: BaseException) -> NoReturn:
    raise error
