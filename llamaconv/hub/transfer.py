"""One file on its way: its part grows, its hash follows, and what has the right hash gets its name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from llamaconv.disk import writing
from llamaconv.errors import IntegrityError, OutputError
from llamaconv.hub.folder import Folder
from llamaconv.hub.part import Part, Piece
from llamaconv.hub.repository import RemoteFile
from llamaconv.hub.retry import Flaw, Mirrors, Patience, Trials

__all__ = ["Transfer"]

_BLOCK = 1 << 20


class Transfer:
    """A file that is being fetched; connections write to its part, one thread follows them with its hash.

    Args:
        file: What is fetched.
        folder: Where it goes.
        mirrors: Where from.
        patience: How long to try.

    Attributes:
        file: The same.
        path: Where it will be.
        part: Its bytes so far.
        resumed: How many of them an earlier run had left.
        fetched: How many have arrived in this run, thrown away ones included.
        first: The endpoint that its pieces begin with, None for the one that answered last.
        last: The endpoint that gave bytes of it last.

    Raises:
        OutputError: The part cannot be made, or something is in its way.
    """

    def __init__(self, file: RemoteFile, folder: Folder, mirrors: Mirrors, patience: Patience) -> None:
        self.file = file
        self.path = folder.path / file.name
        descriptor = folder.open_part(file)
        try:
            with writing(self.path):
                self.part = Part(descriptor, file)
        except BaseException:
            os.close(descriptor)
            raise
        self.resumed = self.part.done
        self.fetched = 0
        self.first: str | None = None
        self.last: str | None = None
        self._folder = folder
        self._patience = patience
        self._trials = Trials(patience, file.name, mirrors)
        self._arrived = threading.Condition()
        self._heard = 0
        self._most = self.resumed

    def advanced(self, nbytes: int) -> bool:
        """Told of each chunk after it was written.

        Returns:
            Whether the file is nearer to its end than it ever was: bytes that had to be fetched twice are none of that.
        """
        with self._arrived:
            self.fetched += nbytes
            done = self.part.done
            if self.fetched - self._heard >= _BLOCK or done == self.file.size:
                self._heard = self.fetched
                self._arrived.notify()
            nearer = done > self._most
            self._most = max(done, self._most)
        return nearer

    def started_over(self) -> None:
        """Told after the part was emptied."""
        with self._arrived:
            self._arrived.notify()

    def follow(self, emptied: Callable[[], None]) -> None:
        """Hash the part as it grows, until it is whole and right; then give the file its name.

        Args:
            emptied: Called when the part had the wrong hash, and all of it is to be fetched again.

        Raises:
            IntegrityError: The hash was wrong as often as may be.
            NetworkError: The deadline does not leave time to fetch it again.
            OutputError: The disk is full or fails.
            Stopped: The work was stopped.
        """
        while (found := self._hashed()) != self.file.digest.hexdigest:
            if found is not None and self.part.unproven and not self.fetched:
                self.part.unproven = False  # another commit's, from a run that was killed: nobody promised them
                self.part.start_over(divided=True)
                emptied()
            elif found is not None:
                self._wrong(found)
                emptied()
        self.part.seal()
        self._folder.finish(self.file, self.part.descriptor)

    def close(self) -> None:
        """Let go of the part."""
        self.part.close()

    def _hashed(self) -> str | None:
        """The hash of the whole file, None if it was started over in the meantime."""
        pieces = self.part.pieces
        hasher, position = self.file.digest.hasher(self.file.size), 0
        memory = memoryview(bytearray(min(_BLOCK, self.file.size)))
        while position < self.file.size:
            end = self._front_beyond(position, pieces)
            while position < end:
                self._patience.check()
                count = os.preadv(self.part.descriptor, [memory[: end - position]], position)
                if pieces is not self.part.pieces:
                    return None
                if count == 0:
                    raise OutputError(
                        f"{self.path}: what was fetched of it was cut short by another program.",
                        hint="Let nothing else write to .cache/llamaconv there, then start again.",
                        file=str(self.path),
                    )
                hasher.update(memory[:count])
                position += count
            if pieces is not self.part.pieces:
                return None
        return hasher.hexdigest()

    def _front_beyond(self, position: int, pieces: tuple[Piece, ...]) -> int:
        """Where the part's gapless beginning ends, once that is beyond ``position`` or the part was emptied."""
        with self._arrived:
            while (front := self.part.front) <= position and pieces is self.part.pieces:
                self._patience.check()
                self._arrived.wait(0.2)  # for as long as nobody stops the work
        return front

    def _wrong(self, found: str) -> None:
        digest = self.file.digest
        flaw = Flaw(
            f"its {digest.algorithm} is {found}, and the Hub promises {digest.hexdigest}",
            file=self.file.name,
            expected=digest.hexdigest,
            found=found,
        )
        self._trials.blame(self.last)
        try:
            seconds = self._trials.failed(flaw)
        except IntegrityError:
            self._folder.drop_part(self.file)
            raise
        self._patience.pause(seconds)
        self.first = self._trials.endpoint
        self.part.start_over(divided=len(self.part.pieces) > 1)
