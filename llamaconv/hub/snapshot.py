"""A download from its beginning to its end: what is wanted, what is there, what is fetched, what is on record."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from llamaconv.disk import writing
from llamaconv.errors import DiskFullError, HubError, LlamaconvError, NetworkError
from llamaconv.hub.board import Board
from llamaconv.hub.client import Client
from llamaconv.hub.fetch import Fetcher
from llamaconv.hub.folder import Folder, Standing
from llamaconv.hub.lockfile import Lock, require_place, write_lock
from llamaconv.hub.meter import Meter
from llamaconv.hub.part import PIECE, Superseded, bytes_there
from llamaconv.hub.repository import RemoteFile
from llamaconv.hub.result import DownloadPlan, DownloadResult, FetchedFile, PlannedFile
from llamaconv.hub.retry import Mirrors, Patience, Stopped
from llamaconv.hub.secrets import Secrets
from llamaconv.hub.settings import DownloadSettings
from llamaconv.hub.stored_listing import Stored
from llamaconv.hub.together import together
from llamaconv.hub.transfer import Transfer
from llamaconv.hub.wanted import Wanted, from_hub, from_store
from llamaconv.progress import Progress, Report

__all__ = ["download", "plan"]

_HASHES_AT_A_TIME = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Session:
    """What a download talks to."""

    client: Client
    mirrors: Mirrors
    patience: Patience


def download(repository: str, directory: Path, settings: DownloadSettings, report: Report) -> DownloadResult:
    """Make ``directory`` hold the wanted files of a repository, each with the hash that the Hub promises.

    What was fetched stays, whatever ends this; the next call goes on from there.

    Args:
        repository: ``org/name``.
        directory: Made if it is missing. What else is in it stays.
        settings: How.
        report: Told about progress, from several threads, one at a time.

    Raises:
        UsageError: The settings contradict each other, or patterns match nothing.
        ConfigError: The lock file cannot be read.
        HubError: The Hub refuses: no such repository, revision or file, or no access.
        NetworkError: The retries or the deadline are used up, or a proxy refuses, or files are missing offline.
        IntegrityError: The bytes are not what was promised, by the Hub or by the lock file.
        OutputError: The directory cannot be written, or something is in the way.
        DiskFullError: There is no space for what is missing.
    """
    began = perf_counter()
    lock = None if settings.locked else settings.lock
    with _session(settings) as session:
        wanted = _wanted(session, repository, directory, settings)
        with Folder.open(directory, wait=logger.warning, cancelled=session.patience.check) as folder:
            if lock is not None:
                require_place(lock)
            there, missing = _sorted_out(folder, wanted, settings, session.patience, report)
            if not _offline(settings):
                folder.write_listing(Stored(wanted.revision, wanted.listing, tuple(file.name for file in wanted.files)))
            elif missing:
                raise _not_there(repository, directory, missing)
            begun = _begun(folder, missing)
            _require_room(folder, missing, begun)
            meter = _meter(wanted, missing, begun, report)
            fetched = _fetched(session, folder, wanted, missing, settings.max_workers, meter)
            folder.sweep({file.name for file in wanted.listing})
    files = {one.file.name: one for one in (*there, *fetched)}
    if lock is not None:
        write_lock(lock, Lock(wanted.revision, replace(wanted.listing, files=wanted.files)))
    return DownloadResult(
        repository,
        wanted.revision,
        wanted.listing.commit,
        directory,
        tuple(files[file.name] for file in wanted.files),
        wanted.skipped,
        session.patience.used,
        session.patience.mismatches,
        perf_counter() - began,
        lock,
    )


def plan(repository: str, directory: Path, settings: DownloadSettings) -> DownloadPlan:
    """What ``download`` would do; nothing is written.

    Raises:
        LlamaconvError: As ``download``, as far as that can be known.
    """
    with _session(settings) as session:
        wanted = _wanted(session, repository, directory, settings)
    with Folder.look(directory) as folder:
        files = tuple(_planned(folder, file) for file in wanted.files)
        free = folder.free_bytes()
    return DownloadPlan(repository, wanted.revision, wanted.listing.commit, directory, files, wanted.skipped, free)


@contextmanager
def _session(settings: DownloadSettings) -> Iterator[_Session]:
    import huggingface_hub

    token = huggingface_hub.get_token() if settings.token is None else settings.token or None
    endpoints = settings.endpoints or (huggingface_hub.constants.ENDPOINT,)
    secrets = Secrets(*(secret for secret in (token,) if secret))
    patience = Patience(settings.retries, settings.max_wait, settings.deadline, secrets)
    try:
        with Client(
            timeout=settings.timeout, token=token, proxy=settings.proxy, secrets=secrets, lifetime=settings.deadline
        ) as client:
            yield _Session(client, Mirrors(tuple(dict.fromkeys(endpoints))), patience)
    except LlamaconvError as error:  # whatever a server made us quote
        error.message, error.hint = secrets.hide(error.message), error.hint and secrets.hide(error.hint)
        error.args = (error.message,)
        error.facts = {
            name: secrets.hide(fact) if isinstance(fact, str) else fact for name, fact in error.facts.items()
        }
        raise


def _offline(settings: DownloadSettings) -> bool:
    if settings.offline is not None:
        return settings.offline
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _wanted(session: _Session, repository: str, directory: Path, settings: DownloadSettings) -> Wanted:
    if not _offline(settings):
        return from_hub(session.client, session.mirrors, session.patience, repository, settings)
    with Folder.look(directory) as folder:
        return from_store(folder.read_listing(), repository, directory, settings)


def _planned(folder: Folder, file: RemoteFile) -> PlannedFile:
    standing = folder.standing(file)
    if standing is Standing.DONE:
        return PlannedFile(file, file.size, "there")
    if standing is Standing.UNKNOWN:
        return PlannedFile(file, file.size, "to check")
    with folder.read_part(file) as part:
        there = 0 if part is None else bytes_there(part, file)
    return PlannedFile(file, there, "partial" if there else "missing")


def _sorted_out(
    folder: Folder, wanted: Wanted, settings: DownloadSettings, patience: Patience, report: Report
) -> tuple[list[FetchedFile], list[RemoteFile]]:
    """Files that are there, and files that are not; what is doubtful is hashed."""
    standings = {file: folder.standing(file) for file in wanted.files}
    sure = {Standing.DONE} if not settings.verify else set()
    doubtful = [
        file
        for file, standing in standings.items()
        if standing in (Standing.DONE, Standing.UNKNOWN) and standing not in sure
    ]
    right = _hashed(folder, doubtful, patience, report)
    for file in doubtful:
        if file not in right:
            known = "damaged" if standings[file] is Standing.DONE else "of the right size but with other contents"
            logger.warning("%s is %s; it is fetched again", folder.path / file.name, known)
            folder.forget(file)
    there = {file for file, standing in standings.items() if standing in sure} | right
    return (
        [FetchedFile(file, "there") for file in wanted.files if file in there],
        [file for file in wanted.files if file not in there],
    )


def _hashed(folder: Folder, files: Sequence[RemoteFile], patience: Patience, report: Report) -> set[RemoteFile]:
    """Those of ``files`` that lie in their place with the right hash; they are on record from now on."""
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
                        folder.record(file)
                        right.add(file)
        except BaseException as error:
            failures.append(error)

    together(work, min(_HASHES_AT_A_TIME, len(files)), halt=patience.stop, halted=lambda: bool(failures))
    if failures:
        raise failures[0]
    return right


def _not_there(repository: str, directory: Path, missing: Sequence[RemoteFile]) -> NetworkError:
    names = [file.name for file in missing]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return NetworkError(
        f"{directory}: of {repository} {shown} {'is' if len(names) == 1 else 'are'} missing, "
        "and the Hub must not be asked.",
        hint="HF_HUB_OFFLINE is set: unset it to download.",
        missing=names,
    )


def _begun(folder: Folder, missing: Sequence[RemoteFile]) -> dict[str, int]:
    """How many bytes of each file an earlier run left."""
    begun = {}
    for file in missing:
        with folder.read_part(file) as part:
            begun[file.name] = 0 if part is None else bytes_there(part, file)
    return begun


def _require_room(folder: Folder, missing: Sequence[RemoteFile], begun: Mapping[str, int]) -> None:
    needed = sum(file.size - begun[file.name] for file in missing)
    free = folder.free_bytes()
    if needed > free:
        raise DiskFullError(
            f"{folder.path}: {needed:,} bytes are still to be fetched, {free:,} bytes are free.",
            hint="Free some space, or download to another directory. What was fetched stays.",
            needed=needed,
            free=free,
        )


def _meter(wanted: Wanted, missing: Sequence[RemoteFile], begun: Mapping[str, int], report: Report) -> Meter:
    total = sum(file.size for file in wanted.files)
    there = total - sum(file.size - begun[file.name] for file in missing)
    return Meter(report, total, there, begun)


def _fetched(
    session: _Session, folder: Folder, wanted: Wanted, missing: Sequence[RemoteFile], connections: int, meter: Meter
) -> list[FetchedFile]:
    """Fetch files, so many pieces at a time."""
    client, mirrors, patience = session.client, session.mirrors, session.patience

    def halt() -> None:
        patience.stop()
        client.interrupt()

    board = Board(missing, lambda file: Transfer(file, folder, mirrors, patience), halt, 2 * connections)
    fetcher = Fetcher(client, wanted.listing, mirrors, patience, board, meter)
    pieces = sum(max(1, file.size // PIECE) for file in missing)
    try:
        together(
            lambda: _work(board, fetcher),
            min(connections, pieces),
            halt=lambda: board.fail(Stopped()),
            halted=lambda: board.error is not None,
        )
    finally:
        board.close()
    if isinstance(board.error, HubError):
        raise wanted.refused(board.error) from None
    if board.error is not None:
        raise board.error
    return [_result(transfer) for transfer in board.finished]


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


def _result(transfer: Transfer) -> FetchedFile:
    return FetchedFile(transfer.file, "resumed" if transfer.resumed else "fetched", transfer.fetched)
