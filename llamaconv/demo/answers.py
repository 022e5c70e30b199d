"""What a small HTTP server is asked, and what it answers: a status, headers, and a body sent piece by piece."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import termios
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["Answer", "HangUp", "Part", "Piece", "Request", "Reset", "json_answer", "part_of"]

_AT_ONCE = 1 << 20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Request:
    """One request, and what came of it.

    Attributes:
        server: Which of the two servers was asked.
        method: ``GET`` or ``HEAD``.
        path: Still quoted, without the query.
        query: What follows the question mark.
        headers: Names in lower case.
        status: Of the answer; 0 before there is one.
        sent: Bytes of the body handed to the connection, whether or not somebody read them.
    """

    server: Literal["hub", "storage"]
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> tuple[int | None, int | None] | None:
        """First and last byte of the one range asked for (RFC 9110, 14.1.2), None where the header leaves it out."""
        match = _RANGE.fullmatch(self.headers.get("range", ""))
        if match is None or not any(match.groups()):
            return None
        first, last = (int(digits) if digits else None for digits in match.groups())
        return first, last

    @property
    def token(self) -> str | None:
        """The bearer's token (RFC 6750)."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


class HangUp(Exception):
    """The connection ends here: with a FIN, or with a RST where ``reset``."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


class Piece(Protocol):
    """A piece of a body."""

    def send(self, connection: socket.socket) -> Iterator[int]:
        """Send it, yielding after each step how many bytes went.

        Raises:
            HangUp: The connection is to be closed.
        """
        ...


@dataclass(frozen=True)
class Part:
    """Bytes ``start`` up to ``stop`` of bytes in memory or of a file."""

    content: bytes | Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def first(self, count: int) -> Part:
        """Its first bytes."""
        return replace(self, stop=self.start + count)

    def after(self, count: int) -> Part:
        """All but its first bytes."""
        return replace(self, start=self.start + count)

    def read(self) -> bytes:
        """All of it."""
        if isinstance(self.content, bytes):
            return self.content[self.start : self.stop]
        with self.content.open("rb") as file:
            return os.pread(file.fileno(), len(self), self.start)

    def send(self, connection: socket.socket) -> Iterator[int]:
        if isinstance(self.content, bytes):
            rest = memoryview(self.content)[self.start : self.stop]
            while rest:
                sent = connection.send(rest)
                rest = rest[sent:]
                yield sent
            return
        with self.content.open("rb") as file:
            at = self.start
            while at < self.stop:
                sent = os.sendfile(connection.fileno(), file.fileno(), at, min(_AT_ONCE, self.stop - at))
                if not sent:  # the file has become shorter
                    raise HangUp(reset=True)
                at += sent
                yield sent


@dataclass(frozen=True)
class Reset:
    """The end of the connection as a lost one looks: RST, after what was sent before has arrived."""

    patience: float = 5.0

    def send(self, connection: socket.socket) -> Iterator[int]:
        end = time.monotonic() + self.patience
        while _unacknowledged(connection) and time.monotonic() < end:
            time.sleep(0.001)
        raise HangUp(reset=True)


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes in the send queue that the other side's kernel has not got."""
    return int(struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0])


@dataclass(frozen=True)
class Answer:
    """A status, headers (among them the length), and the pieces of the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Iterable[Piece] = ()


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """``value`` as JSON."""
    body = json.dumps(value).encode()
    fields = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(body)), **(headers or {})}
    return Answer(status, fields, [Part(body, 0, len(body))])


def part_of(content: bytes | Path, size: int, request: Request, headers: Mapping[str, str]) -> Answer:
    """All of ``content``, or the range asked for (RFC 9110, 14.2), unless If-Range names another ETag (13.1.5)."""
    fields = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    asked = request.range
    if asked is None or request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
        return Answer(200, fields | {"Content-Length": str(size)}, [Part(content, 0, size)])
    first, last = asked
    if first is None:
        first, last = max(size - (last or 0), 0), None
    stop = size if last is None else min(last + 1, size)
    if first >= size or first >= stop:
        return Answer(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
    fields |= {"Content-Range": f"bytes {first}-{stop - 1}/{size}", "Content-Length": str(stop - first)}
    return Answer(206, fields, [Part(content, first, stop)])
