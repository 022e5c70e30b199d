"""The unfinished bytes of one file, with a table of how far they go: what a later run resumes from.

A part holds the file's bytes at their places, and behind them the table, little-endian:

====== ======================================================================================
bytes  what
====== ======================================================================================
16     ``llamaconv part 1``
32     the promised hash, in binary, padded with zeros
8      the file's size
2      length of the validator below
510    the validator: ``ENDPOINT ETAG``, padded with zeros
4      count of pieces
24     for each piece: its first byte, the byte after its last, how many of its bytes are there
====== ======================================================================================

Bytes are written first and counted afterwards, so a killed process loses what it had not counted, one chunk for each
connection, and what the kernel had received and it had not read. What a power failure leaves is told by the hash, like
every other damage.
"""

from __future__ import annotations

import os
import struct
import threading
from dataclasses import dataclass
from itertools import pairwise

from llamaconv.disk import write_at
from llamaconv.hub.repository import RemoteFile

__all__ = ["PIECE", "Part", "Piece", "Superseded", "bytes_held", "bytes_there", "piece_count"]

PIECE = 256 << 20
"""Bytes that one request asks for, about. Files of less than two pieces are not divided."""

_MAGIC = b"llamaconv part 1"
_HEAD = struct.Struct("<16s32sQH510sI")
_ROW = struct.Struct("<QQQ")
_DONE = struct.Struct("<Q")
_MOST_PIECES = 1_000_000
_LONGEST_TAIL = 1 << 20  # has the table of a file of ten terabytes


class Superseded(Exception):
    """The file was started over, or is finished, so this piece of it is none any more."""


@dataclass(eq=False)
class Piece:
    """A run of a file's bytes that one connection fetches front to back.

    Attributes:
        begin, end: First byte, and the one after the last.
        done: How many are there.
    """

    begin: int
    end: int
    done: int = 0

    @property
    def position(self) -> int:
        """The first byte that is missing, ``end`` if none is."""
        return self.begin + self.done

    @property
    def missing(self) -> int:
        """Bytes to go."""
        return self.end - self.position


class Part:
    """A part in progress; every method may be called from any thread.

    Args:
        descriptor: Of the part, open for reading and writing; ``close`` closes it.
        file: What it will be. A part of other contents is emptied.

    Attributes:
        descriptor: The same.
        file: The same.
        pieces: In their order. They are replaced when the file starts over.
        unproven: Whether it was found without its table: nothing tells that its bytes are those of this file.

    Raises:
        OSError: The part cannot be read or written.
    """

    def __init__(self, descriptor: int, file: RemoteFile) -> None:
        self.descriptor = descriptor
        self.file = file
        self._lock = threading.Lock()
        self._ended = False
        self._validator = ""
        self.unproven = os.fstat(descriptor).st_size == file.size > 0
        found = _read(descriptor, file)
        if found is None:
            self.pieces: tuple[Piece, ...] = ()
            self.start_over(divided=True)
        else:
            self.pieces, self._validator = found

    @property
    def done(self) -> int:
        """Bytes that are there."""
        return sum(piece.done for piece in self.pieces)

    @property
    def front(self) -> int:
        """How many bytes are there without a gap from the first on."""
        with self._lock:
            for piece in self.pieces:
                if piece.missing:
                    return piece.position
            return self.file.size

    def require_present(self, piece: Piece) -> None:
        """Raise if the file was started over, or sealed, since ``piece`` was taken.

        Raises:
            Superseded: It was.
        """
        with self._lock:
            self._number(piece)

    def write(self, piece: Piece, data: memoryview) -> None:
        """Append ``data`` to a piece.

        Raises:
            Superseded: The file was started over, or is finished.
            OSError: It cannot be written.
        """
        if len(data) > piece.missing:
            raise ValueError(f"{len(data)} bytes for the {piece.missing} missing of a piece")
        with self._lock:
            number = self._number(piece)
            write_at(self.descriptor, data, piece.position)
            piece.done += len(data)
            place = self.file.size + _HEAD.size + number * _ROW.size + 2 * _DONE.size
            write_at(self.descriptor, _DONE.pack(piece.done), place)

    def start_over(self, *, divided: bool) -> None:
        """Throw all bytes away.

        Args:
            divided: In as many pieces as the size suggests, or all in one.

        Raises:
            Superseded: It is finished.
            OSError: It cannot be written.
        """
        with self._lock:
            if self._ended:
                raise Superseded
            count = piece_count(self.file.size) if divided else 1
            bounds = [self.file.size * number // count for number in range(count + 1)]
            self.pieces = tuple(Piece(begin, end) for begin, end in pairwise(bounds))
            self._validator = ""
            os.ftruncate(self.descriptor, 0)
            self._write_table()

    def validator(self, endpoint: str) -> str | None:
        """The strong ETag that ``endpoint`` led to; what another one leads to may have its own for the same bytes."""
        known, _, etag = self._validator.partition(" ")
        return etag if etag and known == endpoint else None

    def remember(self, piece: Piece, endpoint: str, etag: str | None) -> None:
        """Keep the ETag of an answer for ``validator``. Weak ones are no ground for resuming (RFC 9110, 13.1.5).

        Args:
            piece: That the answer is for; one that comes too late changes nothing.
            endpoint: Which it came through.
            etag: The header.

        Raises:
            Superseded: The file was started over, or is finished.
            OSError: It cannot be written.
        """
        text = f"{endpoint} {etag}"
        usable = etag is not None and etag.startswith('"') and text.isascii() and len(text) <= 510
        with self._lock:
            self._number(piece)
            if usable and text != self._validator:
                self._validator = text
                self._write_table()

    def seal(self) -> None:
        """Cut the table off: the part is the file now, and nothing is written to it any more.

        Raises:
            OSError: It cannot be written.
        """
        with self._lock:
            self._ended = True
            os.ftruncate(self.descriptor, self.file.size)

    def close(self) -> None:
        """Let go of the file: connections that come back too late must not write to whatever its number means then."""
        with self._lock:
            self._ended = True
            os.close(self.descriptor)

    def _number(self, piece: Piece) -> int:
        for number, present in enumerate(self.pieces):
            if present is piece and not self._ended:
                return number
        raise Superseded

    def _write_table(self) -> None:
        validator = self._validator.encode("ascii")
        head = _HEAD.pack(
            _MAGIC,
            bytes.fromhex(self.file.digest.hexdigest),
            self.file.size,
            len(validator),
            validator,
            len(self.pieces),
        )
        rows = b"".join(_ROW.pack(piece.begin, piece.end, piece.done) for piece in self.pieces)
        write_at(self.descriptor, head + rows, self.file.size)


def piece_count(size: int) -> int:
    """In how many pieces a file of ``size`` bytes is fetched."""
    return max(1, size // PIECE)


def bytes_there(descriptor: int, file: RemoteFile) -> int:
    """How many bytes of ``file`` a part holds; nothing is changed.

    Raises:
        OSError: The part cannot be read.
    """
    found = _read(descriptor, file)
    return 0 if found is None else sum(piece.done for piece in found[0])


def bytes_held(descriptor: int) -> int:
    """How many bytes a part holds, of whichever file: what its table counts, or all of them if it has none.

    Raises:
        OSError: The part cannot be read.
    """
    length = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _LONGEST_TAIL, max(0, length - _LONGEST_TAIL))
    begin = tail.rfind(_MAGIC)
    if begin < 0 or len(tail) - begin < _HEAD.size:
        return length
    rows = tail[begin + _HEAD.size :]
    return sum(row[2] for row in _ROW.iter_unpack(rows[: len(rows) // _ROW.size * _ROW.size]))


def _read(descriptor: int, file: RemoteFile) -> tuple[tuple[Piece, ...], str] | None:
    """Pieces and validator of a part, None if it is none of ``file``."""
    length = os.fstat(descriptor).st_size
    if length == file.size > 0:  # sealed, and then the process was killed
        return (Piece(0, file.size, file.size),), ""
    head = os.pread(descriptor, _HEAD.size, file.size)
    if len(head) < _HEAD.size:
        return None
    magic, digest, size, validator_length, validator, count = _HEAD.unpack(head)
    promised = bytes.fromhex(file.digest.hexdigest).ljust(32, b"\0")
    if (magic, digest, size) != (_MAGIC, promised, file.size) or not 0 < count <= _MOST_PIECES:
        return None
    if length != file.size + _HEAD.size + count * _ROW.size:
        return None
    table = os.pread(descriptor, count * _ROW.size, file.size + _HEAD.size)
    pieces = tuple(Piece(*row) for row in _ROW.iter_unpack(table))
    ends = [0, *(piece.end for piece in pieces)]
    whole = all(piece.begin == end and piece.missing >= 0 for piece, end in zip(pieces, ends, strict=False))
    if not whole or len(pieces) != count or ends[-1] != file.size:
        return None
    return pieces, validator[:validator_length].decode("ascii", "replace")
