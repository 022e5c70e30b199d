"""What no message, log or file may show: tokens, passwords and the signatures in URLs."""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from urllib.parse import quote, urlsplit

__all__ = ["HIDDEN", "Secrets", "shown_url", "without_queries"]

HIDDEN = "***"

# The loggers of the HTTP library: at INFO they tell of signed URLs, at DEBUG of a proxy's password too.
_LOGGERS = ("httpx2", "httpcore2.connection", "httpcore2.http11", "httpcore2.proxy", "httpcore2.socks")
_QUERY = re.compile(r"\?[^\s'\"<>]+")


class Secrets:
    """Texts to keep out of what is shown; shared by threads.

    Args:
        texts: Tokens and passwords; None and empty ones are passed over.
    """

    def __init__(self, *texts: str | None) -> None:
        self._lock = Lock()
        self._forms: tuple[str, ...] = ()
        for text in texts:
            self.add(text)

    def add(self, text: str | None) -> None:
        """Hide ``text`` from now on, percent-encoded and in base64 as well."""
        if not text:
            return
        forms = {text, quote(text), quote(text, safe=""), _base64(text)}
        with self._lock:
            if not forms <= set(self._forms):
                # A secret that is part of another one must not break up the longer one.
                self._forms = tuple(sorted(forms.union(self._forms), key=len, reverse=True))

    def add_login(self, user: str, password: str) -> None:
        """Hide a password from now on, and the two as Basic authentication sends them (RFC 7617, section 2)."""
        self.add(password)
        self.add(_base64(f"{user}:{password}"))

    def hide(self, text: str) -> str:
        """``text`` with ``***`` in the place of every secret."""
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    @contextmanager
    def kept_from_logs(self) -> Iterator[None]:
        """While open, the HTTP library's own log records show neither secrets nor queries of URLs."""

        def scrubbed(record: logging.LogRecord) -> bool:
            record.msg, record.args = without_queries(self.hide(record.getMessage())), None
            return True

        loggers = [logging.getLogger(name) for name in _LOGGERS]
        for logger in loggers:
            logger.addFilter(scrubbed)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(scrubbed)


def without_queries(text: str) -> str:
    """``text`` with ``?***`` in the place of what looks like the query of a URL, which may be signed."""
    return _QUERY.sub(f"?{HIDDEN}", text)


def shown_url(url: str) -> str:
    """``url`` as messages may show it: ``scheme://host[:port]/path``.

    User, password, query and fragment are left out. Where an ``@`` behind the host leaves open what is a password
    (it should have been percent-encoded there), all but the scheme is ``***``.
    """
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    try:
        parts = urlsplit(f"//{rest}")
    except ValueError:  # brackets that hold no IPv6 address
        return f"{scheme}{separator}{HIDDEN}"
    if "@" in rest[len(parts.netloc) :]:
        return f"{scheme}{separator}{HIDDEN}"
    return f"{scheme}{separator}{parts.netloc.rpartition('@')[2]}{parts.path}"


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode("ascii")
