"""What a download talks to, and what it must not say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llamaconv.errors import LlamaconvError
from llamaconv.hub.client import Client
from llamaconv.hub.retry import Mirrors, Patience
from llamaconv.hub.secrets import Secrets
from llamaconv.hub.settings import DownloadSettings

__all__ = ["Session", "offline", "session"]


@dataclass(frozen=True)
class Session:
    """What a download talks to, where, and for how long."""

    client: Client
    mirrors: Mirrors
    patience: Patience

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

    token = huggingface_hub.get_token() if settings.token is None else settings.token or None
    endpoints = settings.endpoints or (huggingface_hub.constants.ENDPOINT,)
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
