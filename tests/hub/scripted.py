"""A server on loopback that answers each request with the bytes a test gives it, and can break off as asked."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Cut", "Request", "Server", "certificate", "deaf_port", "listening", "reply", "served"]


@dataclass(frozen=True)
class Request:
    """Method, target as it came, and headers by their lower-case names."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Cut:
    """Bytes, after which the connection is closed, reset, or left silent until the client goes."""

    data: bytes
    how: Literal["close", "reset", "stall"]


@dataclass
class Server:
    """Where it listens, and what it was asked."""

    port: int
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"


def reply(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An answer with Content-Length; an underscore in a header's name stands for a dash."""
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextmanager
def served(answer: Callable[[Request], bytes | Cut], certificate: Path | None = None) -> Iterator[Server]:
    """A server that gives ``answer`` to each request; with a certificate (and key, in one PEM file) over TLS."""

    def converse(connection: socket.socket) -> None:
        server.connections += 1
        incoming = connection.makefile("rb")
        with incoming:
            while line := incoming.readline():
                method, target, _ = line.decode().split()
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (text.decode().partition(":") for text in iter(incoming.readline, b"\r\n"))
                }
                server.requests.append(Request(method, target, headers))
                given = answer(server.requests[-1])
                connection.sendall(given.data if isinstance(given, Cut) else given)
                if isinstance(given, Cut):
                    if given.how == "stall":
                        incoming.read()
                    if given.how == "reset":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return

    with listening(converse, certificate) as port:
        server = Server(port)
        yield server


@contextmanager
def listening(converse: Callable[[socket.socket], None], certificate: Path | None = None) -> Iterator[int]:
    """A port whose every connection is handed to ``converse``, in a thread of its own."""

    def talk(connection: socket.socket) -> None:
        with suppress(OSError), connection:  # the client may go at any time
            if context is None:
                converse(connection)
            else:
                with context.wrap_socket(connection, server_side=True) as secured:
                    converse(secured)

    def accept() -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=talk, args=(connection,)))
                threads[-1].start()

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    threads: list[threading.Thread] = []
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (acceptor, *threads):
                thread.join(10)


def deaf_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def certificate(folder: Path) -> Path:
    """A new certificate for 127.0.0.1 that nobody has signed, and its key, in one PEM file."""
    path = folder / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", path, "-out", folder / "certificate.pem"], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (folder / "certificate.pem").read_bytes())
    return path
