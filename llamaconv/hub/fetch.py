"""One piece of one file, from whichever mirror gives it, until all of its bytes are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from llamaconv.errors import HubError
from llamaconv.hub.answers import Asked, Hiccup
from llamaconv.hub.api import file_path, require_length
from llamaconv.hub.board import Board
from llamaconv.hub.client import Answer, Client
from llamaconv.hub.meter import Meter
from llamaconv.hub.part import Piece
from llamaconv.hub.repository import Listing
from llamaconv.hub.retry import Flaw, Mirrors, Patience, Trials
from llamaconv.hub.secrets import shown_url
from llamaconv.hub.transfer import Transfer

__all__ = ["Fetcher"]

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")


class Fetcher:
    """Fetches pieces from the Hub.

    Args:
        client: For the requests.
        listing: Repository and commit.
        mirrors: Where to ask.
        patience: How long.
        board: Where work comes from.
        meter: Told of what arrives.
    """

    def __init__(
        self, client: Client, listing: Listing, mirrors: Mirrors, patience: Patience, board: Board, meter: Meter
    ) -> None:
        self.client = client
        self.listing = listing
        self.mirrors = mirrors
        self.patience = patience
        self.board = board
        self.meter = meter

    def fetch(self, transfer: Transfer, piece: Piece) -> None:
        """Fetch what is missing of a piece that the board gave, and give it back.

        Raises:
            HubError: No mirror has the file.
            NetworkError: The retries are used up, or the deadline has passed.
            IntegrityError: They are used up, and the answers were not what was promised.
            OutputError: The disk is full or fails.
            Superseded: The file was started over by another connection.
            Stopped: The work was stopped.
        """
        errand = _Errand(self, transfer, piece)
        try:
            errand.run()
        finally:
            self.board.release(errand.piece)


class _Errand:
    """The attempts at one piece."""

    def __init__(self, fetcher: Fetcher, transfer: Transfer, piece: Piece) -> None:
        self.piece = piece
        self._fetcher = fetcher
        self._transfer = transfer
        self._part = transfer.part
        listing, self._file = fetcher.listing, transfer.file
        self._asked = Asked(listing.repository, listing.commit, self._file.name)
        self._path = file_path(listing.repository, listing.commit, self._file.name)
        self._trials = Trials(fetcher.patience, self._file.name, fetcher.mirrors, transfer.first)

    def run(self) -> None:
        self._trials.run(self._attempt)

    def _attempt(self) -> None:
        self._part.require_present(self.piece)
        try:
            self._ask()
        except (Hiccup, Flaw, HubError):
            self._part.require_present(self.piece)  # else it was in vain, and no failure
            raise

    def _ask(self) -> None:
        headers = self._range()
        left = self._fetcher.patience.left()
        with self._fetcher.client.get(self._trials.endpoint, self._path, self._asked, headers, left) as answer:
            self._admit(answer, headers)
            self._receive(answer)
        if self.piece.missing:
            raise Hiccup(f"{answer.host} ended the file early, {self.piece.missing:,} bytes before its end")

    def _range(self) -> dict[str, str]:
        """Headers that ask for what is missing; none where that is all of the file."""
        begin, end = self.piece.position, self.piece.end
        if begin == 0 and end == self._file.size:
            return {}
        headers = {"Range": f"bytes={begin}-{end - 1}"}
        if validator := self._part.validator(shown_url(self._trials.endpoint)):
            headers["If-Range"] = validator
        return headers

    def _admit(self, answer: Answer, headers: dict[str, str]) -> None:
        """Make sure that the body is what was asked for, or the whole file."""
        if answer.status == 416:
            self.piece = self._fetcher.board.start_over(self._transfer, self.piece)
            raise Hiccup(f"{answer.host} has no such part of it (416), so it starts over")
        require_length(answer, self._require_range(answer) if answer.status == 206 else self._file.size)
        if answer.status != 206 and headers:  # the whole file instead of a part
            self.piece = self._fetcher.board.start_over(self._transfer, self.piece)
        self._part.remember(self.piece, shown_url(self._trials.endpoint), answer.headers.get("etag"))
        self._transfer.last = self._trials.endpoint

    def _require_range(self, answer: Answer) -> int:
        """How many bytes the answer has, which begin with the first that is missing."""
        value = answer.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(value)
        if match is None:
            raise Flaw(f"{answer.host} answers with a part of it and does not say which")
        first, last, size = int(match[1]), int(match[2]), int(match[3] or self._file.size)
        if first != self.piece.position or not first <= last < self.piece.end or size != self._file.size:
            raise Flaw(
                f"{answer.host} answers with bytes {first}-{last} of {size}, "
                f"asked for {self.piece.position}-{self.piece.end - 1} of {self._file.size}"
            )
        return last - first + 1

    def _receive(self, answer: Answer) -> None:
        chunks = answer.chunks()
        for chunk in chunks:
            self._fetcher.patience.check()
            if len(chunk) >= self.piece.missing:  # the last bytes count only once nothing follows them
                self._require_end(answer, chunks, len(chunk))
            self._part.write(self.piece, memoryview(chunk))
            if self._transfer.advanced(len(chunk)):
                self._trials.progressed()
            self._fetcher.meter.moved(self._transfer)

    def _require_end(self, answer: Answer, chunks: Iterator[bytes], last: int) -> None:
        more = last > self.piece.missing
        with suppress(Hiccup):  # came too late to matter
            more = more or next(chunks, None) is not None
        if more:
            self.piece = self._fetcher.board.start_over(self._transfer, self.piece)
            raise Flaw(f"{answer.host} sends more than the {self._file.size:,} bytes that the Hub promises")
