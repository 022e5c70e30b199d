"""Clients and requests as the tests of the Hub's client make them."""

from __future__ import annotations

import pytest

from llamaconv.hub.answers import Asked, Hiccup
from llamaconv.hub.client import Client
from llamaconv.hub.secrets import Secrets

__all__ = ["ASKED", "BODY", "HEAD", "fetched", "hiccup", "opened"]

ASKED = Asked("org/name", "main", "weights")
BODY = bytes(range(256)) * 1000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 256000\r\n\r\n"


def opened(timeout: float = 10.0, token: str | None = None, proxy: str | None = "") -> Client:
    """A client; without a proxy unless told."""
    return Client(timeout=timeout, token=token, proxy=proxy, secrets=Secrets())


def fetched(client: Client, endpoint: str, path: str = "/file", **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer; an underscore in a header's name stands for a dash."""
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    with client.get(endpoint, path, ASKED, asked) as answer:
        return answer.status, b"".join(answer.chunks())


def hiccup(client: Client, endpoint: str) -> Hiccup:
    """The hiccup in which a request ends; a traceback of it shows no exception of others, which may tell secrets."""
    with pytest.raises(Hiccup) as caught:
        fetched(client, endpoint)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value
