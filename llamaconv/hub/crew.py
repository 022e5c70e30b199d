"""The connections of a download: each takes a piece from the board, fetches it, and comes back for the next."""

from __future__ import annotations

from contextlib import suppress

from llamaconv.disk import writing
from llamaconv.errors import HubError
from llamaconv.hub.board import Board
from llamaconv.hub.fetch import Fetcher
from llamaconv.hub.folder import Folder
from llamaconv.hub.inventory import Inventory
from llamaconv.hub.meter import Meter
from llamaconv.hub.part import Superseded, piece_count
from llamaconv.hub.result import FetchedFile
from llamaconv.hub.retry import Stopped
from llamaconv.hub.session import Session
from llamaconv.hub.together import together
from llamaconv.hub.transfer import Transfer
from llamaconv.hub.wanted import Wanted
from llamaconv.progress import Report

__all__ = ["fetch_missing"]


def fetch_missing(
    session: Session, folder: Folder, wanted: Wanted, inventory: Inventory, connections: int, report: Report
) -> list[FetchedFile]:
    """Fetch what is missing, so many pieces at a time.

    Raises:
        HubError: No mirror has a file.
        NetworkError: The retries or the deadline are used up.
        IntegrityError: They are used up, and the bytes were not what was promised.
        OutputError, DiskFullError: The directory cannot take it.
    """
    if not inventory.missing:
        return []
    mirrors, patience = session.mirrors, session.patience
    meter = Meter(report, inventory.size, inventory.size - inventory.missing_bytes, inventory.begun)
    board = Board(
        inventory.missing, lambda file: Transfer(file, folder, mirrors, patience), session.halt, 2 * connections
    )
    fetcher = Fetcher(session.client, wanted.listing, mirrors, patience, board, meter)
    pieces = sum(piece_count(file.size) for file in inventory.missing)
    try:
        together(
            lambda: _work(board, fetcher),
            min(connections, pieces),
            "connection",
            halt=lambda: board.fail(Stopped()),
            halted=lambda: board.error is not None or board.complete or patience.is_over,
        )
    finally:
        board.close()
    if isinstance(board.error, HubError):
        raise wanted.refused(board.error) from None
    if board.error is not None:
        raise board.error
    if not board.complete:
        raise patience.too_late()
    return [
        FetchedFile(transfer.file, "resumed" if transfer.resumed else "fetched", transfer.fetched)
        for transfer in board.finished
    ]


def _work(board: Board, fetcher: Fetcher) -> None:
    """What each connection does."""
    try:
        while (claim := board.claim()) is not None:
            with suppress(Superseded), writing(claim[0].path):
                fetcher.fetch(*claim)
    except Stopped:
        return
    except BaseException as error:
        board.fail(error)
