"""What comes of a request: what it was about, and what another attempt may mend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import responses

__all__ = ["Asked", "Hiccup", "retry_after", "shown_status"]


_RATE_LIMIT = re.compile(r";\s*r=0\s*;\s*t=([0-9]{1,9})\b")


class Hiccup(Exception):
    """Something that another attempt may mend.

    Args:
        reason: A phrase that ends a sentence, without a secret in it.
        retry_after: The seconds that the server asks to wait; None if it does not say.
        limited: Whether it is the number of our requests that the server minds.
    """

    def __init__(self, reason: str, retry_after: float | None = None, *, limited: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.limited = limited


@dataclass(frozen=True)
class Asked:
    """What a request is about, for messages."""

    repository: str
    revision: str
    file: str | None = None


def shown_status(status: int) -> str:
    """``503 (Service Unavailable)``; only the number of a status without a name."""
    return f"{status} ({responses[status]})" if status in responses else str(status)


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds to wait that an answer asks for.

    Retry-After (RFC 9110, section 10.2.3) has a number of seconds or a date; a date in the past is 0, nonsense None.
    The Hub says the same as ``RateLimit: "api";r=0;t=55`` (draft-ietf-httpapi-ratelimit-headers): 0 requests
    remain in the 55 seconds until the window ends.
    """
    window = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    if window is not None:
        return float(window[1]) + 1.0
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)  # HTTP knows no other zone
    return max(0.0, (date - now).total_seconds())
