"""Who fetches what next: pieces of the files that are on their way, then the next file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from llamaconv.disk import writing
from llamaconv.errors import OutOfMemoryError
from llamaconv.hub.part import Piece
from llamaconv.hub.repository import RemoteFile
from llamaconv.hub.retry import Stopped
from llamaconv.hub.transfer import Transfer

__all__ = ["Board"]

_SECONDS_TO_END = 60.0
"""For a hash to notice that it is not wanted any more, and for a file that is being synced to the disk."""


class Board:
    """The work of a download, shared by its connections.

    Args:
        files: To fetch, in this order.
        begin: Opens a file's transfer.
        halt: Called when something fails, or all is done: ends all waiting.
        most: Files on their way at a time, those that are only still hashed included.

    Attributes:
        finished: Transfers of files that are whole and in their place.
        error: What failed first.
        complete: Whether all files are finished.
    """

    def __init__(
        self, files: Iterable[RemoteFile], begin: Callable[[RemoteFile], Transfer], halt: Callable[[], None], most: int
    ) -> None:
        self.finished: list[Transfer] = []
        self.error: BaseException | None = None
        self.complete = False
        self._waiting = list(files)[::-1]
        self._begin = begin
        self._halt = halt
        self._most = most
        self._active: list[Transfer] = []
        self._followers: list[threading.Thread] = []
        self._claimed: set[Piece] = set()
        self._changed = threading.Condition()

    def claim(self) -> tuple[Transfer, Piece] | None:
        """The next piece to fetch, whole files' hashes being awaited if need be; None when all is done.

        Raises:
            Stopped: Something has failed.
        """
        with self._changed:
            while self._active or self._waiting:
                self._require_no_error()
                found = next(self._open_pieces(), None)
                if found is not None:
                    self._claimed.add(found[1])
                    return found
                if self._waiting and len(self._active) < self._most:
                    self._start(self._waiting.pop())
                else:
                    self._changed.wait()
            self._require_no_error()
            return None

    def release(self, piece: Piece) -> None:
        """Told when a connection is done with a piece, or lets go of it."""
        with self._changed:
            self._claimed.discard(piece)
            self._changed.notify_all()

    def start_over(self, transfer: Transfer, piece: Piece) -> Piece:
        """Empty a file's part on behalf of the connection that holds ``piece``; it gets the whole file to fetch.

        Raises:
            Superseded: Another connection was first.
            OSError: The part cannot be written.
        """
        with self._changed:
            transfer.part.require_present(piece)
            transfer.part.start_over(divided=False)
            self._claimed.discard(piece)
            whole = transfer.part.pieces[0]
            self._claimed.add(whole)
        transfer.started_over()
        return whole

    def fail(self, error: BaseException) -> None:
        """End all work; the first error is the one that counts."""
        with self._changed:
            first = self.error is None
            self.error = self.error or error
            self._changed.notify_all()
        if first:
            self._halt()

    def close(self) -> None:
        """Let go of the parts of files that are not finished, once their connections have ended."""
        until = time.monotonic() + _SECONDS_TO_END
        for follower in list(self._followers):
            follower.join(max(until - time.monotonic(), 0.0))
        if not any(follower.is_alive() for follower in self._followers):
            for transfer in self._active:
                transfer.close()

    def _require_no_error(self) -> None:
        if self.error is not None:
            raise Stopped

    def _open_pieces(self) -> Iterator[tuple[Transfer, Piece]]:
        for transfer in self._active:
            for piece in transfer.part.pieces:
                if piece.missing and piece not in self._claimed:
                    yield transfer, piece

    def _start(self, file: RemoteFile) -> None:
        transfer = self._begin(file)
        self._active.append(transfer)
        follower = threading.Thread(target=self._follow, args=(transfer,), name=f"hash {file.name}", daemon=True)
        try:
            follower.start()
        except RuntimeError as error:
            raise OutOfMemoryError(
                f"{transfer.path}: its hash needs a thread, and none can be had ({error}).", hint="Use --max-workers 1."
            ) from error
        self._followers.append(follower)

    def _follow(self, transfer: Transfer) -> None:
        try:
            with writing(transfer.path):
                transfer.follow(self._wake)
        except Stopped:
            return
        except BaseException as error:
            self.fail(error)
            return
        with self._changed:
            transfer.close()  # first: whoever waits for the last file may want to unmount what it lies on
            self._active.remove(transfer)
            self._followers.remove(threading.current_thread())
            self.finished.append(transfer)
            self._changed.notify_all()
            self.complete = not (self._active or self._waiting)
        if self.complete:
            self._halt()  # connections that wait for bytes nobody needs any more

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
