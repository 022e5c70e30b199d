"""Which of the wanted files are there, and how much of the others; what is doubtful is hashed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from llamaconv.hub.folder import Folder, Standing
from llamaconv.hub.part import bytes_held, bytes_there
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
        damaged: Names of those that have something else in their place.
    """

    there: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]
    begun: Mapping[str, int]
    damaged: frozenset[str]

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
    if standing is Standing.OUTDATED:
        return PlannedFile(file, begun, "outdated")
    if standing is Standing.OTHER:
        return PlannedFile(file, begun, "to replace")
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
        record: Keep what the hashes were, and say what is to be replaced; else nothing is written, and nothing said.

    Raises:
        OutputError: A file cannot be read, or something else is in its place.
        NetworkError: The deadline has passed.
    """
    standings = {file: folder.standing(file) for file in files}
    sure = set() if verify else {file for file, standing in standings.items() if standing is Standing.DONE}
    candidates = (Standing.DONE, Standing.UNKNOWN)
    doubtful = [file for file, standing in standings.items() if standing in candidates and file not in sure]
    right = _right(folder, doubtful, patience, report)
    there = tuple(file for file in files if file in sure or file in right)
    missing = tuple(file for file in files if file not in sure and file not in right)
    if record:
        _keep(folder, there, right, wrong=[file for file in doubtful if file not in right])
        for file in missing:
            _announce(folder, file, standings[file])
    begun = {file.name: _begun(folder, file) for file in missing}
    damaged = frozenset(file.name for file in missing if standings[file] is not Standing.ABSENT)
    return Inventory(there, missing, begun, damaged)


def _keep(
    folder: Folder,
    there: Collection[RemoteFile],
    right: Mapping[RemoteFile, os.stat_result],
    wrong: Collection[RemoteFile],
) -> None:
    """Put on record what was found, and what its hashes were."""
    for file in there:
        folder.share(file)
        if file in right:
            folder.record(file, right[file])
    for file in wrong:
        folder.forget(file)


def _announce(folder: Folder, file: RemoteFile, standing: Standing) -> None:
    """Say what fetching a file will cost that is there."""
    path = folder.path / file.name
    if standing is Standing.DONE:
        logger.warning("%s is damaged; it must be fetched again", path)
    elif standing in (Standing.UNKNOWN, Standing.OTHER):
        logger.warning("%s is another file of that name; it will be replaced", path)
    with folder.read_part(file) as part:
        if part is not None and not bytes_there(part, file) and (held := bytes_held(part)):
            logger.warning("%s: %s bytes were there of another commit's file; it starts over", path, f"{held:,}")


def _begun(folder: Folder, file: RemoteFile) -> int:
    with folder.read_part(file) as part:
        return 0 if part is None else bytes_there(part, file)


def _right(
    folder: Folder, files: Sequence[RemoteFile], patience: Patience, report: Report
) -> dict[RemoteFile, os.stat_result]:
    """Those of ``files`` that lie in their place with the right hash, and the status of what was hashed."""
    total, done, lock = sum(file.size for file in files), dict.fromkeys(files, 0), threading.Lock()
    waiting, right, failures = list(reversed(files)), dict[RemoteFile, os.stat_result](), list[BaseException]()

    def look_at(file: RemoteFile) -> None:
        def check(position: int) -> None:
            patience.check()
            with lock:
                done[file] = position
                report(Progress("checking", sum(done.values()), total, "bytes", file.name))

        hashed = folder.digest_of(file, check)
        if hashed is not None and hashed.hexdigest == file.digest.hexdigest:
            right[file] = hashed.status

    def work() -> None:
        try:
            while waiting and not failures:
                with suppress(IndexError):  # another thread took the last one
                    look_at(waiting.pop())
        except BaseException as error:
            failures.append(error)

    together(work, min(_HASHES_AT_A_TIME, len(files)), "hash", halt=patience.stop, halted=lambda: bool(failures))
    if failures:
        raise failures[0]
    return right
