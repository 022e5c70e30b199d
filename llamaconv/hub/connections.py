"""The connections of a client: how far each request has come, whose sockets are open, and faults in words."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import httpx2
from httpcore2 import NetworkStream

from llamaconv.errors import NetworkError, printable
from llamaconv.hub.addresses import shown_address
from llamaconv.hub.answers import Hiccup, shown_status

__all__ = ["Sockets", "Way", "connection_fault", "proxy_refusal"]


@dataclass
class Way:
    """How far a request has come on its way to a host.

    Attributes:
        host: The host asked, ``host[:port]``.
        address: Its name and port.
        peer: Name and port of the connection, which are a proxy's if they are not those of the host.
        connecting: Whether a TCP connection is being made.
        securing: The name whose certificate is being checked, while it is.
        greeting: Whether it is still the proxy that has to answer (CONNECT or SOCKS5), not yet the host.
        handshaking: The stream on which a SOCKS5 handshake is under way.
    """

    host: str
    address: tuple[str, int]
    peer: tuple[str, int] | None = None
    connecting: bool = False
    securing: str | None = None
    greeting: bool = False
    handshaking: NetworkStream | None = None

    @property
    def proxy(self) -> str | None:
        """``host:port`` of the proxy that the connection goes through."""
        return None if self.peer is None or self.peer == self.address else shown_address(*self.peer)

    @property
    def answering(self) -> str:
        """Who is to say something next."""
        if self.proxy is None:
            return self.host
        return f"the proxy {self.proxy}" if self.greeting else f"{self.host} (through the proxy {self.proxy})"

    def trace(self, sockets: Sockets, event: str, info: Mapping[str, Any]) -> None:
        """Follow the HTTP library's events of this request (httpcore2's ``trace`` extension)."""
        match event.partition(".")[2]:
            case "connect_tcp.started":
                self.peer, self.connecting = (info["host"], info["port"]), True
            case "connect_tcp.complete" | "start_tls.complete":
                self.connecting, self.securing = False, None
                sockets.add(info["return_value"].get_extra_info("socket"), self.peer)
            case "start_tls.started":
                self.securing, self.greeting = info["server_hostname"], False
            case "setup_socks5_connection.started":
                self.greeting, self.handshaking = True, info["stream"]
            case "setup_socks5_connection.complete":
                self.greeting, self.handshaking = False, None
            case "setup_socks5_connection.failed" if self.handshaking is not None:
                self.handshaking.close()  # the library leaves it open
            case "send_request_headers.started":
                self.greeting = info["request"].method == b"CONNECT"


class Sockets:
    """The open sockets of a client, with the name and port that each is connected to; shared by threads.

    Attributes:
        stopped: Whether they were shut down, for good.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._peers: WeakKeyDictionary[socket.socket, tuple[str, int] | None] = WeakKeyDictionary()
        self.stopped = False

    def add(self, connected: socket.socket, peer: tuple[str, int] | None) -> None:
        with self._lock:
            self._peers[connected] = peer
            if self.stopped:
                _shut_down(connected)

    def peer(self, response: httpx2.Response) -> tuple[str, int] | None:
        """What the connection that gave ``response`` is connected to."""
        with self._lock:
            return self._peers.get(response.extensions["network_stream"].get_extra_info("socket"))

    def shut_down(self) -> None:
        """Every socket there is or will be; whoever reads or writes it returns at once."""
        with self._lock:
            self.stopped = True
            for connected in self._peers:
                _shut_down(connected)


def _shut_down(connected: socket.socket) -> None:
    with suppress(OSError):  # closed already
        # SSLSocket's own method would have its readers take what is still encrypted for the body.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def connection_fault(error: Exception, way: Way, timeout: float) -> Hiccup | NetworkError:
    """What to raise for an exception of the HTTP library; nothing of its text but what is known to be harmless.

    Args:
        error: The exception.
        way: How far the request had come.
        timeout: The longest silence allowed, in seconds.
    """
    causes = list(_causes(error))
    if isinstance(error, httpx2.ProxyError):
        return _proxy_fault(str(error), way)
    if way.handshaking is not None and not isinstance(error, httpx2.TransportError):
        return Hiccup(f"the proxy {way.proxy} broke off the SOCKS5 handshake (it may want a user and password)")
    if way.securing is not None and not isinstance(error, httpx2.TimeoutException):
        return _tls_fault(causes, way.securing)
    if way.connecting:
        return Hiccup(_not_connected(error, causes, way, timeout))
    if isinstance(error, httpx2.TimeoutException):
        return Hiccup(f"{way.answering} was silent for {timeout:g} s")
    if isinstance(error, httpx2.RemoteProtocolError):
        return Hiccup(_protocol_fault(str(error), way.answering))
    if any(isinstance(cause, ConnectionResetError) for cause in causes):
        return Hiccup(f"{way.answering} reset the connection")
    return Hiccup(f"the connection to {way.answering} broke ({_why(causes)})")


def proxy_refusal(proxy: str, status: int | None = None) -> NetworkError:
    """The error for a proxy that wants a user and password, or others."""
    shown = "" if status is None else f" ({status})"
    return NetworkError(
        f"The proxy {proxy} demands authentication{shown}.",
        hint="Give the right user and password in --proxy or the proxy variable: http://USER:PASSWORD@HOST:PORT.",
        proxy=proxy,
    )


def _proxy_fault(text: str, way: Way) -> Hiccup | NetworkError:
    # The texts are httpcore2's own, but for the status line of an answer to CONNECT.
    proxy = str(way.proxy)
    first = text.partition(" ")[0]
    if first == "407":
        return proxy_refusal(proxy, 407)
    if first in ("Requested", "Invalid"):  # of SOCKS5: another method of authentication; user and password
        return proxy_refusal(proxy)
    if first.isdecimal():
        return Hiccup(f"the proxy {proxy} answered {shown_status(int(first))}")
    detail = printable(text.rpartition(": ")[2].rstrip("."))
    return Hiccup(f"the proxy {proxy} could not connect to {way.host} ({detail})")


def _tls_fault(causes: list[BaseException], name: str) -> Hiccup | NetworkError:
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NetworkError(
                f"The certificate of {name} is not trusted ({cause.verify_message.rstrip('.')}).",
                hint="If your network checks TLS itself, name its certificates in SSL_CERT_FILE.",
                host=name,
            )
    return Hiccup(f"{name}: the TLS handshake failed ({_why(causes)})")


def _not_connected(error: Exception, causes: list[BaseException], way: Way, timeout: float) -> str:
    unknown = any(isinstance(cause, socket.gaierror) for cause in causes)
    late = isinstance(error, httpx2.TimeoutException)
    why = f"no answer within {timeout:g} s" if late else "name resolution failed" if unknown else _why(causes)
    if way.proxy is not None:
        return f"the proxy {way.proxy} cannot be reached ({why})"
    return f"{way.host}: {why}" if unknown else f"{way.host}: no connection ({why})"


def _protocol_fault(text: str, who: str) -> str:
    # The two texts are httpcore2's and h11's for a connection that ended early.
    if text.startswith("Server disconnected"):
        return f"{who} closed the connection without an answer"
    if text.startswith("peer closed connection"):
        return f"{who} closed the connection in mid-body"
    return f"{who} did not answer in HTTP/1.1"


def _why(causes: list[BaseException]) -> str:
    """The operating system's or TLS library's word for it."""
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason.lower().replace("_", " ")
        if isinstance(cause, OSError) and cause.strerror:
            return printable(cause.strerror)
    return type(causes[-1]).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those it came of; httpcore2 suppresses the context, which is still there."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
