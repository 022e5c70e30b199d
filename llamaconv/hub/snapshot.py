"""A download from its beginning to its end: what is wanted, what is there, what is fetched, what is on record."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from llamaconv.errors import DiskFullError, NetworkError
from llamaconv.hub.crew import fetch_missing
from llamaconv.hub.folder import Folder
from llamaconv.hub.inventory import Inventory, planned, take_inventory
from llamaconv.hub.lockfile import Lock, require_place, write_lock
from llamaconv.hub.result import DownloadPlan, DownloadResult, FetchedFile
from llamaconv.hub.session import Session, offline, session
from llamaconv.hub.settings import DownloadSettings
from llamaconv.hub.stored_listing import Stored
from llamaconv.hub.wanted import Wanted, from_hub, from_store
from llamaconv.progress import Report

__all__ = ["download", "plan"]

_MOST_NAMED = 10

logger = logging.getLogger(__name__)


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
    with session(settings) as open_session:
        wanted = _wanted(open_session, repository, directory, settings)
        work = _found if offline(settings) else _fetched
        files = {one.file.name: one for one in work(open_session, wanted, directory, settings, report)}
        patience = open_session.patience
    if lock is not None:
        write_lock(lock, Lock(wanted.revision, replace(wanted.listing, files=wanted.files)))
    return DownloadResult(
        repository,
        wanted.revision,
        wanted.listing.commit,
        directory,
        tuple(files[file.name] for file in wanted.files),
        wanted.skipped,
        patience.used,
        patience.mismatches,
        perf_counter() - began,
        lock,
    )


def plan(repository: str, directory: Path, settings: DownloadSettings) -> DownloadPlan:
    """What ``download`` would do; nothing is written.

    Raises:
        LlamaconvError: As ``download``, as far as that can be known.
    """
    with session(settings) as open_session:
        wanted = _wanted(open_session, repository, directory, settings)
    with Folder.look(directory) as folder:
        files = tuple(planned(folder, file) for file in wanted.files)
        free = folder.free_bytes()
    return DownloadPlan(repository, wanted.revision, wanted.listing.commit, directory, files, wanted.skipped, free)


def _wanted(open_session: Session, repository: str, directory: Path, settings: DownloadSettings) -> Wanted:
    if not offline(settings):
        return from_hub(open_session.client, open_session.mirrors, open_session.patience, repository, settings)
    with Folder.look(directory) as folder:
        return from_store(folder.read_listing(), repository, directory, settings)


def _fetched(
    open_session: Session, wanted: Wanted, directory: Path, settings: DownloadSettings, report: Report
) -> list[FetchedFile]:
    """All wanted files, those that are missing fetched."""
    patience = open_session.patience
    with Folder.open(directory, wait=logger.warning, cancelled=patience.check) as folder:
        if settings.lock is not None and not settings.locked:
            require_place(settings.lock)
        folder.write_listing(Stored(wanted.revision, wanted.listing, tuple(file.name for file in wanted.files)))
        inventory = take_inventory(folder, wanted.files, patience, report, verify=settings.verify, record=True)
        _require_room(folder, inventory)
        fetched = fetch_missing(open_session, folder, wanted, inventory, settings.max_workers, report)
        folder.sweep({file.name for file in wanted.listing})
    return [*(FetchedFile(file, "there") for file in inventory.there), *fetched]


def _found(
    open_session: Session, wanted: Wanted, directory: Path, settings: DownloadSettings, report: Report
) -> list[FetchedFile]:
    """All wanted files, without a network and without a byte written: they may lie where nothing can be."""
    with Folder.look(directory) as folder:
        inventory = take_inventory(
            folder, wanted.files, open_session.patience, report, verify=settings.verify, record=False
        )
    if not inventory.missing:
        return [FetchedFile(file, "there") for file in inventory.there]
    names = [file.name for file in inventory.missing]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    raise NetworkError(
        f"{directory}: of {wanted.listing.repository} {', '.join(names[:_MOST_NAMED])}{more} "
        f"{'is' if len(names) == 1 else 'are'} missing, and the Hub must not be asked.",
        hint="HF_HUB_OFFLINE is set: unset it to download.",
        missing=names,
    )


def _require_room(folder: Folder, inventory: Inventory) -> None:
    needed, free = inventory.missing_bytes, folder.free_bytes()
    if needed > free:
        raise DiskFullError(
            f"{folder.path}: {needed:,} bytes are still to be fetched, {free:,} bytes are free.",
            hint="Free some space, or download to another directory. What was fetched stays.",
            needed=needed,
            free=free,
        )
