"""What the local directory's files were when their hashes were right: who delivered them, and whether they changed."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from pydantic import TypeAdapter

from llamaconv.disk import writing
from llamaconv.errors import OutputError
from llamaconv.hub.beneath import Tree
from llamaconv.hub.entries import checked, entry
from llamaconv.hub.repository import Digest

__all__ = ["Delivery", "Records"]


@dataclass(frozen=True)
class Delivery:
    """A file whose hash was right.

    Attributes:
        size: In bytes.
        mtime_ns: When it was last changed.
        digest: The hash.
        repository: From which a download brought it; empty where it was found, or where several want it.
    """

    size: int
    mtime_ns: int
    digest: Digest
    repository: str

    def describes(self, found: os.stat_result) -> bool:
        """Whether that is the file, as far as can be known without reading it."""
        return (self.size, self.mtime_ns) == (found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class _Record:
    """Of one name: what was delivered last, and behind it what that replaced, or is about to."""

    name: str
    deliveries: tuple[Delivery, ...]


_FORM = TypeAdapter(_Record)


class Records:
    """The records in a local directory; several threads may use them, each for files of its own.

    They are a cache: one that is missing or damaged makes a file be hashed again, and nobody's.

    Args:
        state: Our folder.
    """

    def __init__(self, state: Tree) -> None:
        self._state = state

    def last(self, name: str) -> Delivery | None:
        """What was delivered last under ``name``, whatever lies there now."""
        record = self._read(_place(name))
        return record.deliveries[0] if record is not None and record.name == name else None

    def delivery(self, name: str, found: os.stat_result) -> Delivery | None:
        """What delivered the file ``name`` as it is now; None if nothing did, or somebody changed it since."""
        record = self._read(_place(name))
        if record is None or record.name != name:
            return None
        return next((delivery for delivery in record.deliveries if delivery.describes(found)), None)

    def write(self, name: str, delivery: Delivery, replaced: Delivery | None = None) -> None:
        """Remember a delivery; if it is about to replace another one, both, for a kill may come in between.

        Raises:
            DiskFullError, OutputError: It cannot be written.
        """
        place = _place(name)
        record = _Record(name, (delivery,) if replaced is None else (delivery, replaced))
        with writing(self._state.path / place):
            self._state.write(place, _FORM.dump_json(record))

    def remove(self, name: str) -> None:
        """Forget what was delivered under ``name``.

        Raises:
            OutputError: It cannot be removed.
        """
        place = _place(name)
        with writing(self._state.path / place):
            self._state.remove(place)

    def names(self) -> list[str]:
        """Of all files on record, sorted."""
        with writing(self._state.path / "done"):
            places = [place for place in self._state.files("done") if place.endswith(".json")]
        records = (self._read(f"done/{place}") for place in places)
        return sorted(record.name for record in records if record is not None)

    def _read(self, place: str) -> _Record | None:
        with suppress(OSError, OutputError, ValueError):
            record = _FORM.validate_json(self._state.read(place) or b"", strict=True)
            if record.deliveries and place == _place(record.name):
                return record
        return None


def _place(name: str) -> str:
    return f"done/{entry(checked(name), '.json')}"
