"""A client that keeps what it got before the connection failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx2

__all__ = ["Fetched", "fetch", "plain"]


@dataclass(frozen=True)
class Fetched:
    """What came of a request.

    Attributes:
        status: 0 without an answer.
        headers: Of the answer.
        body: As it came, not unpacked, up to the failure.
        error: The failure's type, and None without one.
    """

    status: int
    headers: httpx2.Headers
    body: bytes
    error: type[httpx2.TransportError] | None


def plain(**settings: Any) -> httpx2.Client:
    """A client that follows redirects and knows of no proxy but the one given."""
    return httpx2.Client(follow_redirects=True, trust_env=False, **settings)


def fetch(client: httpx2.Client, url: str, wanted: str | None = None) -> Fetched:
    """The file at ``url``, or the range of it that is wanted."""
    body, status, headers = bytearray(), 0, httpx2.Headers()
    try:
        with client.stream("GET", url, headers={} if wanted is None else {"Range": wanted}) as answer:
            status, headers = answer.status_code, answer.headers
            for data in answer.iter_raw():
                body += data
    except httpx2.TransportError as error:
        return Fetched(status, headers, bytes(body), type(error))
    return Fetched(status, headers, bytes(body), None)
