"""One HTTP client for the Hub's API and its files: redirects, credentials, proxies, and answers told apart.

What comes back is an answer to read, a Hiccup that another attempt may mend, or an error that none does.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from threading import TIMEOUT_MAX, Timer
from types import TracebackType
from typing import Self

import httpx2

from llamaconv import __version__
from llamaconv.errors import UsageError
from llamaconv.hub.addresses import (
    address,
    checked_endpoint,
    checked_proxy,
    joined,
    origin,
    proxies_of_environment,
    redirected,
    shown_host,
)
from llamaconv.hub.answers import Asked, Hiccup, retry_after, shown_status
from llamaconv.hub.connections import Sockets, Way, connection_fault, proxy_refusal
from llamaconv.hub.refusals import Refusal, refusal
from llamaconv.hub.secrets import Secrets

__all__ = ["Answer", "Client"]

MAX_REDIRECTS = 10

_REDIRECTS = (301, 302, 303, 307, 308)
_SMALL_BODY = 65536  # read to its end, so that the connection can be used again
_MIN_TIMEOUT = 0.01  # seconds; a timeout of 0 would mean "do not wait" to a socket
_LEAST_RATE = 1000  # bytes a second, over the time that may pass in silence: another connection may be better
_KEEP_ALIVE = 30.0  # seconds

_HEADERS = {
    "User-Agent": f"llamaconv/{__version__}",
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # sizes and hashes are those of the plain bytes
}


@dataclass(frozen=True)
class Answer:
    """An answer whose body can be read, once, while the request's context is open.

    Attributes:
        status: 200, 206 or 416.
        headers: Of this answer, the last one if there were redirects.
        host: Who gave it, ``host[:port]``.
    """

    status: int
    headers: httpx2.Headers
    host: str
    _response: httpx2.Response = field(repr=False)
    _way: Way = field(repr=False)
    _client: Client = field(repr=False)
    _timeout: float = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives.

        Raises:
            Hiccup: It ends early, stalls or trickles, or the connection breaks.
        """
        waited, received = 0.0, 0
        with self._client.faults_named(self._way, self._timeout):
            body = self._response.iter_raw()
            while True:
                began = time.monotonic()
                chunk = next(body, None)
                waited += time.monotonic() - began  # what is done with the chunks does not count
                if chunk is None:
                    return
                received += len(chunk)
                if waited > self._timeout:
                    if received < waited * _LEAST_RATE:
                        raise Hiccup(f"{self.host} sent only {received:,} bytes in {waited:.1f} s")
                    waited, received = 0.0, 0
                yield chunk


class Client:
    """Requests to the Hub and its mirrors; a context manager that threads may share.

    Args:
        timeout: Longest silence of a connection, in seconds.
        token: Goes to the origin of the endpoint and to no other.
        proxy: URL of the proxy for everything: http, https, socks5 or socks5h (names are resolved at the proxy for
            both); None for those in HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, "" for none.
        secrets: What no message may show; passwords met here are added.
        lifetime: Seconds after which it is interrupted, however its servers keep it busy; None for never.

    Raises:
        UsageError: The token cannot be one; a proxy's URL cannot be used.
    """

    def __init__(
        self,
        *,
        timeout: float,
        token: str | None,
        proxy: str | None,
        secrets: Secrets,
        lifetime: float | None = None,
    ) -> None:
        secrets.add(token)
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise UsageError(
                "The token holds characters that no token has.", hint="Look for quotes, blanks or line ends in it."
            )
        given = proxies_of_environment() if proxy is None else {"--proxy": proxy} if proxy else {}
        proxies = [checked_proxy(url, secrets, place) for place, url in given.items()]
        self._timeout = timeout
        self._lifetime = lifetime
        self._authorization = f"Bearer {token}" if token else None
        self._secrets = secrets
        self._sockets = Sockets()
        self._open = ExitStack()
        self._http = httpx2.Client(
            headers=_HEADERS,
            verify=_trusted_certificates(),
            proxy=proxies[0] if proxy else None,
            trust_env=proxy is None,
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def __enter__(self) -> Self:
        self._open.enter_context(self._secrets.kept_from_logs())
        self._open.enter_context(self._http)
        if self._lifetime is not None:
            end = Timer(min(self._lifetime, TIMEOUT_MAX), self.interrupt)
            end.daemon = True
            end.start()
            self._open.callback(end.cancel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def interrupt(self) -> None:
        """Stop for good, from any thread: blocked reads end at once, and each request ends in a Hiccup.

        A name being resolved and a connection being made are not cut short; the latter ends with the timeout.
        """
        self._sockets.shut_down()

    @contextmanager
    def get(
        self,
        endpoint: str,
        path: str,
        asked: Asked,
        headers: Mapping[str, str] | None = None,
        limit: float | None = None,
    ) -> Iterator[Answer]:
        """Ask ``endpoint`` for ``path``, follow its redirects, and give the answer.

        Args:
            endpoint: ``http[s]://[user:password@]host[:port][/path]``; a user and password there take the place of
                the token.
            path: Percent-encoded, from "/" on, with the query.
            asked: What it is about, for messages.
            headers: Range and If-Range, which travel along on redirects.
            limit: Seconds that a timeout may be at most.

        Raises:
            Hiccup: Another attempt may mend it.
            HubError: The Hub refused, or redirects to where we do not go.
            NetworkError: A proxy demands authentication, a certificate is not trusted.
            UsageError: The endpoint's URL cannot be used.
        """
        timeout = self._timeout if limit is None else max(_MIN_TIMEOUT, min(self._timeout, limit))
        base, authorization = checked_endpoint(endpoint, self._secrets)
        authorization = authorization or self._authorization
        url = joined(base, path)
        for _ in range(MAX_REDIRECTS + 1):
            away = origin(url) != origin(base)
            authorization = None if away else authorization  # gone for good, even if it should lead back
            way = Way(shown_host(url), address(url))
            sent = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
            with self._sent(url, sent, way, timeout) as response:
                status = response.status_code
                if status not in _REDIRECTS:
                    if not _usable(response, way):
                        met = Refusal(status, response.headers, way.host, endpoint, away, authorization is not None)
                        raise refusal(met, asked, self._secrets)
                    yield Answer(status, response.headers, way.host, response, way, self, timeout)
                    return
                url = redirected(url, response.headers.get("Location"))
                _finish(response)
        raise Hiccup(f"{shown_host(base)} redirects more than {MAX_REDIRECTS} times")

    @contextmanager
    def faults_named(self, way: Way, timeout: float) -> Iterator[None]:
        """Turn the HTTP library's exceptions into ours; theirs may tell secrets, so they are not passed on."""
        try:
            yield
        except Exception as error:
            # While connecting, socksio and the codec of host names raise errors of their own, and assertions fail.
            if not (isinstance(error, httpx2.TransportError) or way.connecting or way.handshaking is not None):
                raise
            fault = _stopped() if self._sockets.stopped else connection_fault(error, way, timeout)
        else:
            return
        raise fault from None

    @contextmanager
    def _sent(self, url: httpx2.URL, headers: Mapping[str, str], way: Way, timeout: float) -> Iterator[httpx2.Response]:
        if self._sockets.stopped:
            raise _stopped()
        trace = partial(way.trace, self._sockets)
        with self.faults_named(way, timeout):
            request = self._http.build_request(
                "GET", url, headers=headers, timeout=timeout, extensions={"trace": trace}
            )
            response = self._http.send(request, stream=True, follow_redirects=False, auth=None)
        way.peer = self._sockets.peer(response)
        try:
            yield response
        finally:
            response.close()


def _stopped() -> Hiccup:
    return Hiccup("the download was stopped")


def _usable(response: httpx2.Response, way: Way) -> bool:
    """Whether there is a body to read, and not a refusal; what is neither is raised."""
    status = response.status_code
    if status in (200, 206):
        if response.headers.get("Content-Encoding", "").lower() not in ("", "identity"):
            raise Hiccup(f"the answer of {way.host} came compressed though it was not asked for")
        return True
    if status == 407:
        raise proxy_refusal(way.proxy or way.host, 407)
    if status in (408, 429) or status >= 500:
        seconds = retry_after(response.headers, datetime.now(UTC))
        raise Hiccup(f"{way.host} answered {shown_status(status)}", seconds, limited=status == 429)
    if status < 400:
        raise Hiccup(f"{way.host} answered {shown_status(status)}")
    return status == 416


def _finish(response: httpx2.Response) -> None:
    """Read a small body to its end: only then can its connection serve the next request."""
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) <= _SMALL_BODY:
        with suppress(httpx2.TransportError):  # the connection is then closed, and another one made
            for _ in response.iter_raw():
                pass


def _trusted_certificates() -> ssl.SSLContext:
    """Loaded once for all connections; SSL_CERT_FILE and SSL_CERT_DIR are looked at."""
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        raise UsageError(
            f"The certificates to trust cannot be read ({error.strerror}).",
            hint="Mend SSL_CERT_FILE or SSL_CERT_DIR, or unset them.",
        ) from error
