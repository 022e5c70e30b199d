"""Faults of networks, proxies and servers, played on the small Hub's honest answers."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import Enum
from select import POLLIN, poll

from llamaconv.demo.answers import Answer, HangUp, Part, Piece, Request, Reset

__all__ = ["ANY", "Fault", "Kind", "spoilt", "suits"]


class Kind(Enum):
    """What goes wrong; the comments name the fields of ``Fault`` that say how."""

    RESET = "reset"  # after: RST
    EARLY_EOF = "early EOF"  # after: FIN
    STALL = "stall"  # after, seconds: silence, until the client goes or it is over; then FIN
    FLIP = "flipped bit"  # after: the byte with the bit
    REFUSE_CONNECTION = "closed at once"  # without an answer
    STATUS = "status"  # status
    RETRY_LATER = "retry later"  # status (429 or 503), seconds, as_date
    HTML = "captive portal"  # 200 with a page
    COMPRESSED = "compressed"  # Content-Encoding: gzip, unasked for
    CONTENT_LENGTH = "wrong length"  # extra: announced over there are; the body ends where announced, or with FIN
    TOO_LONG = "too long"  # extra: bytes over the promised; chunked, or else as announced
    IGNORE_RANGE = "range ignored"  # 200 with everything
    NOT_SATISFIABLE = "416"  # although it is
    WRONG_RANGE = "another range"  # extra: bytes later than asked


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: Which.
        after: Bytes of the body that are sent before it; a float is a share of the body.
        seconds: Of silence, or to wait before trying again.
        status: Of the answer.
        as_date: Retry-After is a date, and not a number of seconds.
        extra: Bytes too many, or too few when negative.
        chunked: The length is not announced.
    """

    kind: Kind
    after: int | float = 0
    seconds: float = 0.0
    status: int = 503
    as_date: bool = False
    extra: int = 1
    chunked: bool = False

    def cut(self, size: int) -> int:
        """``after`` in a body of ``size`` bytes."""
        return int(self.after * size) if isinstance(self.after, float) else self.after


# What a client must survive. Not here: what may as well be an attack or a setting (TOO_LONG, HTML, COMPRESSED).
ANY = (
    Fault(Kind.RESET),
    Fault(Kind.EARLY_EOF),
    Fault(Kind.STALL, seconds=5.0),
    Fault(Kind.FLIP),
    Fault(Kind.REFUSE_CONNECTION),
    *(Fault(Kind.STATUS, status=status) for status in (408, 500, 502, 503, 504)),
    Fault(Kind.RETRY_LATER, status=429, seconds=1),
    Fault(Kind.RETRY_LATER, status=429, seconds=1, as_date=True),
    Fault(Kind.CONTENT_LENGTH, extra=-1),
    Fault(Kind.CONTENT_LENGTH, extra=7),
    Fault(Kind.IGNORE_RANGE),
    Fault(Kind.NOT_SATISFIABLE),
    Fault(Kind.WRONG_RANGE),
)

_IN_THE_BODY = (Kind.RESET, Kind.EARLY_EOF, Kind.STALL, Kind.FLIP)
_OF_A_BODY = (*_IN_THE_BODY, Kind.COMPRESSED, Kind.CONTENT_LENGTH, Kind.TOO_LONG)
_OF_A_RANGE = (Kind.IGNORE_RANGE, Kind.NOT_SATISFIABLE, Kind.WRONG_RANGE)


def suits(fault: Fault, request: Request, answer: Answer) -> bool:
    """Whether the fault can be played on this request, and differs from the answer."""
    body = _body(answer)
    if fault.kind in _OF_A_RANGE:
        return answer.status == 206 and (fault.kind is not Kind.WRONG_RANGE or _can_move(fault, request, body))
    if fault.kind is Kind.FLIP and "ETag" not in answer.headers:
        return False  # a listing with another hash in it is a lie that nobody can see through
    if fault.kind in _OF_A_BODY:
        return body is not None and fault.cut(len(body)) < len(body) and -fault.extra < len(body)
    return True


def _can_move(fault: Fault, request: Request, body: Part | None) -> bool:
    return request.range is not None and request.range[0] is not None and body is not None and len(body) > fault.extra


def spoilt(fault: Fault, answer: Answer) -> Answer:
    """What the fault makes of the answer.

    Raises:
        HangUp: Nothing but the end of the connection.
    """
    if fault.kind is Kind.REFUSE_CONNECTION:
        raise HangUp(reset=False)
    return _spoilt_body(fault, answer) if fault.kind in _OF_A_BODY else _instead(fault, answer)


def _body(answer: Answer) -> Part | None:
    """An honest answer has a body of one part, or none."""
    parts = [piece for piece in answer.pieces if isinstance(piece, Part)]
    return parts[0] if parts and 200 <= answer.status < 300 else None


def _instead(fault: Fault, answer: Answer) -> Answer:
    """An answer without the file."""
    if fault.kind is Kind.HTML:
        return _page(200, "<!DOCTYPE html><title>Welcome to our guest network</title>", {})
    if fault.kind is Kind.NOT_SATISFIABLE:
        size = answer.headers["Content-Range"].rpartition("/")[2]
        return _page(416, "", {"Content-Range": f"bytes */{size}"})
    if fault.kind is Kind.RETRY_LATER:
        later = datetime.now(UTC) + timedelta(seconds=fault.seconds)
        wait = format_datetime(later, usegmt=True) if fault.as_date else f"{fault.seconds:.0f}"
        return _page(fault.status, "later", {"Retry-After": wait})
    return _page(fault.status, "something went wrong", {})


def _page(status: int, text: str, headers: Mapping[str, str]) -> Answer:
    body = text.encode()
    fields = {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}
    return Answer(status, fields, [Part(body, 0, len(body))])


def _spoilt_body(fault: Fault, answer: Answer) -> Answer:
    body = _body(answer)
    assert body is not None
    cut, size = fault.cut(len(body)), len(body)
    extra = b"!" * fault.extra
    pieces: dict[Kind, list[Piece]] = {
        Kind.RESET: [body.first(cut), Reset()],
        Kind.EARLY_EOF: [body.first(cut), Silence(0.0)],
        Kind.STALL: [body.first(cut), Silence(fault.seconds)],
        Kind.CONTENT_LENGTH: [body, Silence(0.0)] if fault.extra > 0 else [body.first(size + fault.extra)],
        Kind.TOO_LONG: [body, Part(extra, 0, len(extra))],
    }
    if fault.kind is Kind.FLIP:
        flipped = bytes([body.after(cut).first(1).read()[0] ^ 1])
        return replace(answer, pieces=[body.first(cut), Part(flipped, 0, 1), body.after(cut + 1)])
    if fault.kind is Kind.COMPRESSED:
        packed = gzip.compress(body.read())
        headers = {**answer.headers, "Content-Encoding": "gzip", "Content-Length": str(len(packed))}
        return Answer(answer.status, headers, [Part(packed, 0, len(packed))])
    headers = dict(answer.headers)
    if fault.kind in (Kind.CONTENT_LENGTH, Kind.TOO_LONG):
        headers["Content-Length"] = str(size + fault.extra)
    if fault.chunked:
        del headers["Content-Length"]
        headers["Transfer-Encoding"] = "chunked"
        return Answer(answer.status, headers, list(_chunks(pieces[fault.kind])))
    return Answer(answer.status, headers, pieces[fault.kind])


def _chunks(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """A body in chunks (RFC 9112, 7.1), each piece one of them."""
    for piece in pieces:
        assert isinstance(piece, Part)
        head = b"%x\r\n" % len(piece)
        yield from (Part(head, 0, len(head)), piece, Part(b"\r\n", 0, 2))
    yield Part(b"0\r\n\r\n", 0, 5)


@dataclass(frozen=True)
class Silence:
    """Nothing until the client speaks or goes, at most ``seconds``; then the end."""

    seconds: float

    def send(self, connection: socket.socket) -> Iterator[int]:
        listening = poll()
        listening.register(connection, POLLIN)
        listening.poll(self.seconds * 1000)
        raise HangUp(reset=False)
