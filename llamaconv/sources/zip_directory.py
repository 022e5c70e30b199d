"""The directory of a zip archive that ``torch.save`` wrote: where each record's bytes lie.

(PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.) Only what torch writes is taken:
records stored as they are, neither compressed nor encrypted, each with a name of its own, on one disk. Every number is
held against the file, whose end may have been cut off and whose bytes may be anybody's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamaconv.extents import Extent, Stamp
from llamaconv.sources.base import damaged

__all__ = ["read_directory"]

_MAX_BYTES = 32_000_000  # of directory; a record takes about 80
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_IN_EXTRA = 0xFFFFFFFF  # stands for a number that needs 64 bits
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13


@dataclass(frozen=True)
class _Entry:
    """A record by the directory: sizes in bytes, and the offset of its local header."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    stored: int
    size: int
    offset: int


def read_directory(descriptor: int, stamp: Stamp, path: Path) -> dict[str, Extent]:
    """Where the records of a zip archive lie, by their names, in the directory's order.

    Raises:
        CheckpointError: The archive is cut off or contradicts itself, or a record is compressed or encrypted, named
            twice, outside the file or within another; all such records are named.
    """
    try:
        entries = list(_entries(*_find(descriptor, stamp[0])))
    except ValueError as error:
        raise damaged(path, [f"{error}."]) from error
    records: dict[str, Extent] = {}
    faults = []
    for entry in entries:
        try:
            if entry.name in records:
                raise ValueError("is there twice")
            records[entry.name] = Extent(path, _begin(descriptor, entry, stamp[0]), entry.size, stamp)
        except ValueError as error:
            faults.append(f"the record {entry.name!r} {error}.")
    faults = faults or _overlaps(records)
    if faults:
        raise damaged(path, faults)
    return records


def _find(descriptor: int, size: int) -> tuple[bytes, int]:
    """The bytes of the directory and the number of entries that it should have."""
    start = max(size - _END.size - _LONGEST_COMMENT, 0)
    tail = os.pread(descriptor, size - start, start)
    position = tail.rfind(b"PK\5\6")
    if position < 0 or position + _END.size > len(tail):
        raise ValueError("truncated: the zip archive's directory, which is at its end, is missing")
    *_, count, nbytes, offset, _ = _END.unpack_from(tail, position)
    end = start + position
    locator = os.pread(descriptor, _LOCATOR_64.size, max(end - _LOCATOR_64.size, 0))
    if locator.startswith(b"PK\6\7") and len(locator) == _LOCATOR_64.size:
        end = _LOCATOR_64.unpack(locator)[2]
        raw = os.pread(descriptor, _END_64.size, min(end, size))
        if not raw.startswith(b"PK\6\6") or len(raw) < _END_64.size:
            raise ValueError("the zip archive's directory is not where its end says")
        *_, count, nbytes, offset = _END_64.unpack(raw)
    if nbytes > _MAX_BYTES:
        raise ValueError(f"a zip directory of {nbytes} bytes, where {_MAX_BYTES} are enough")
    if offset + nbytes > end:
        raise ValueError("the zip archive's directory is not where its end says")
    return os.pread(descriptor, nbytes, offset), count


def _entries(raw: bytes, count: int) -> Iterator[_Entry]:
    position = found = 0
    while position < len(raw):
        if len(raw) - position < _ENTRY.size or not raw.startswith(b"PK\1\2", position):
            raise ValueError(f"the zip directory is broken after {found} entries")
        (_, _, _, flags, method, _, _, _, stored, size, name_size, extra_size, comment_size, _, _, _, offset) = (
            _ENTRY.unpack_from(raw, position)
        )
        position += _ENTRY.size
        name = raw[position : position + name_size]
        extra = raw[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        if position > len(raw):
            raise ValueError(f"the zip directory is broken after {found} entries")
        size, stored, offset = _widened((size, stored, offset), extra)
        yield _Entry(name.decode("utf-8", "backslashreplace"), name, flags, method, stored, size, offset)
        found += 1
    if found != count:
        raise ValueError(f"the zip directory has {found} entries where {count} are announced")


def _widened(numbers: tuple[int, int, int], extra: bytes) -> list[int]:
    """``numbers``, where those that do not fit 32 bits are taken from the zip64 field of ``extra``."""
    position = 0
    wide = b""
    while position + 4 <= len(extra) and not wide:
        kind, size = struct.unpack_from("<2H", extra, position)
        wide = extra[position + 4 : position + 4 + size] if kind == 1 else b""
        position += 4 + size
    widened = []
    for number in numbers:
        if number == _IN_EXTRA:
            if len(wide) < 8:
                raise ValueError("the zip directory lacks a size or offset of 64 bits")
            number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        widened.append(number)
    return widened


def _begin(descriptor: int, entry: _Entry, size: int) -> int:
    """The offset of a record's first byte; the ValueError's text continues "the record NAME …"."""
    if entry.flags & _ENCRYPTED:
        raise ValueError("is encrypted")
    if entry.method or entry.stored != entry.size:
        raise ValueError("is compressed")
    if entry.offset > size:
        raise ValueError(f"begins at byte {entry.offset} of a file of {size} bytes")
    raw = os.pread(descriptor, _LOCAL.size + len(entry.raw_name), entry.offset)
    if not (raw.startswith(b"PK\3\4") and raw[_LOCAL.size :] == entry.raw_name):
        raise ValueError(f"is not at byte {entry.offset}, where the zip directory has it")
    *_, name_size, extra_size = _LOCAL.unpack_from(raw)
    begin: int = entry.offset + _LOCAL.size + name_size + extra_size
    if begin + entry.size > size:
        raise ValueError(f"ends at byte {begin + entry.size} of a file of {size} bytes")
    return begin


def _overlaps(records: dict[str, Extent]) -> list[str]:
    faults = []
    end, before = 0, ""
    for name, record in sorted(records.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if record.offset < end:
            faults.append(f"the record {name!r} begins within the record {before!r}.")
        end, before = max((end, before), (record.offset + record.nbytes, name))
    return faults
