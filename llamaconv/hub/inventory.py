"""Which of the wanted files are there, and how much of the others; what is doubtful is hashed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from llamaconv.hub.folder import Folder, Standing
from llamaconv.hub.part import bytes_there
from llamaconv.hub.repository import RemoteFile
from llamaconv.hub.result import PlannedFile
from llamaconv.hub.retry import Patience
from llamaconv.hub.together import together
from llamaconv.progress import Progress, Report

__all__ = ["Inventory", "planned", "take_inventory"]

_HASHES_AT_A_TIME = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inventory:
    """What a download finds.

    Attributes:
        there: Files that are whole and right.
        missing: The others.
        begun: How many bytes of each of these an earlier run left, by name.
    """

    there: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]
    begun: Mapping[str, int]

    @property
    def size(self) -> int:
        """Of all the files, in bytes."""
        return sum(file.size for file in (*self.there, *self.missing))

    @property
    def missing_bytes(self) -> int:
        """To be fetched."""
        return sum(file.size - self.begun[file.name] for file in self.missing)


def planned(folder: Folder, file: RemoteFile) -> PlannedFile:
    """How a download would find a file; nothing is hashed."""
    standing = folder.standing(file)
    if standing is Standing.DONE:
        return PlannedFile(file, file.size, "there")
    if standing is Standing.UNKNOWN:
        return PlannedFile(file, file.size, "to check")
    begun = _begun(folder, file)
    return PlannedFile(file, begun, "partial" if begun else "missing")


def take_inventory(
    folder: Folder, files: Sequence[RemoteFile], patience: Patience, report: Report, *, verify: bool, record: bool
) -> Inventory:
    """Look for files, and hash those that nobody answers for.

    Args:
        folder: Where.
        files: Which.
        patience: Ends it.
        report: Told about the hashing.
        verify: Hash all of them.
        record: Keep what the hashes were; else nothing is written.

    Raises:
        OutputError: A file cannot be read, or something else is in its place.
        NetworkError: The deadline has passed.
    """
    standings = {file: folder.standing(file) for file in files}
    sure = set() if verify else {file for file, standing in standings.items() if standing is Standing.DONE}
    candidates = (Standing.DONE, Standing.UNKNOWN)
    doubtful = [file for file, standing in standings.items() if standing in candidates and file not in sure]
    right = _right(folder, doubtful, patience, report)
    for file in doubtful:
        if record and file in right:
            folder.record(file)
        elif record:
            folder.forget(file)
        if file not in right:
            known = "damaged" if standings[file] is Standing.DONE else "of the right size but with other contents"
            logger.warning("%s is %s; it must be fetched again", folder.path / file.name, known)
    there = sure | right
    missing = tuple(file for file in files if file not in there)
    begun = {file.name: _begun(folder, file) for file in missing}
    return Inventory(tuple(file for file in files if file in there), missing, begun)


def _begun(folder: Folder, file: RemoteFile) -> int:
    with folder.read_part(file) as part:
        return 0 if part is None else bytes_there(part, file)


def _right(folder: Folder, files: Sequence[RemoteFile], patience: Patience, report: Report) -> set[RemoteFile]:
    """Those of ``files`` that lie in their place with the right hash."""
    total, done, lock = sum(file.size for file in files), dict.fromkeys(files, 0), threading.Lock()
    waiting, right, failures = list(reversed(files)), set[RemoteFile](), list[BaseException]()

    def is_right(file: RemoteFile) -> bool:
        def check(position: int) -> None:
            patience.check()
            with lock:
                done[file] = position
                report(Progress("checking", sum(done.values()), total, "bytes", file.name))

        return folder.digest_of(file, check) == file.digest.hexdigest

    def work() -> None:
        try:
            while waiting and not failures:
                with suppress(IndexError):  # another thread took the last one
                    file = waiting.pop()
                    if is_right(file):
                        right.add(file)
        except BaseException as error:
            failures.append(error)

    together(work, min(_HASHES_AT_A_TIME, len(files)), halt=patience.stop, halted=lambda: bool(failures))
    if failures:
        raise failures[0]
    return right
