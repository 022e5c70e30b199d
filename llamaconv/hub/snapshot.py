"""A download from its beginning to its end: what is wanted, what is there, what is fetched, what is on record."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from llamaconv.errors import DiskFullError, IntegrityError, NetworkError
from llamaconv.hub.crew import fetch_missing
from llamaconv.hub.folder import Folder
from llamaconv.hub.inventory import Inventory, planned, take_inventory
from llamaconv.hub.leftovers import are, disturbing, named, tell, tidy, warn_of_others
from llamaconv.hub.lockfile import Lock, require_free_of, require_place, write_lock
from llamaconv.hub.result import DownloadPlan, DownloadResult, FetchedFile
from llamaconv.hub.session import Session, offline, session
from llamaconv.hub.settings import DownloadSettings
from llamaconv.hub.stored_listing import Stored
from llamaconv.hub.wanted import Wanted, from_hub, from_store
from llamaconv.progress import Report, silent

__all__ = ["download", "plan"]

_DEFAULTS = DownloadSettings()
_OFFLINE = "HF_HUB_OFFLINE is set: unset it to download."

logger = logging.getLogger(__name__)


def download(
    repository: str, directory: Path, settings: DownloadSettings = _DEFAULTS, report: Report = silent
) -> DownloadResult:
    """Make ``directory`` hold the wanted files of a repository, each with the hash that the Hub promises.

    What was fetched stays, whatever ends this; the next call goes on from there.

    Args:
        repository: ``org/name``.
        directory: Made if it is missing. What else is in it stays, but for unchanged files of the repository's other
            commits, which earlier downloads brought.
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
    if lock is not None:
        require_place(lock, directory)
    with session(settings) as open_session:
        wanted = _wanted(open_session, repository, directory, settings)
        logger.info("%s: %s is commit %s", repository, wanted.revision, wanted.listing.commit)
        if lock is not None:
            require_free_of(lock, directory, [file.name for file in wanted.files])
        work = _found if offline(settings) else _fetched
        found, removed = work(open_session, wanted, directory, settings, report)
        files = {one.file.name: one for one in found}
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
        removed,
        patience.used,
        patience.mismatches,
        perf_counter() - began,
        lock,
    )


def plan(repository: str, directory: Path, settings: DownloadSettings = _DEFAULTS) -> DownloadPlan:
    """What ``download`` would do; nothing is written.

    Raises:
        LlamaconvError: As ``download``, as far as that can be known.
    """
    with session(settings) as open_session:
        wanted = _wanted(open_session, repository, directory, settings)
    with Folder.look(directory, repository) as folder:
        files = tuple(planned(folder, file) for file in wanted.files)
        free = folder.free_bytes()
        removes = () if settings.is_selective else tuple(disturbing(folder, wanted))
    commit = wanted.listing.commit
    made = DownloadPlan(repository, wanted.revision, commit, directory, files, wanted.skipped, removes, free)
    if made.missing_bytes > free:
        logger.warning("%s", _too_small(directory, made.missing_bytes, free))
    return made


def _wanted(open_session: Session, repository: str, directory: Path, settings: DownloadSettings) -> Wanted:
    if not offline(settings):
        return open_session.call(lambda: from_hub(open_session, repository, directory, settings))
    with Folder.look(directory, repository) as folder:
        return from_store(folder.read_listing(), repository, directory, settings)


def _fetched(
    open_session: Session, wanted: Wanted, directory: Path, settings: DownloadSettings, report: Report
) -> tuple[list[FetchedFile], tuple[str, ...]]:
    """All wanted files, those that are missing fetched; and names of files that were removed."""
    patience, listing = open_session.patience, wanted.listing
    with Folder.open(directory, listing.repository, wait=logger.warning, cancelled=patience.check) as folder:
        before = folder.read_listing()
        if before is not None and before.listing.repository != listing.repository:
            logger.warning("%s holds %s; %s is added to it", directory, before.listing.repository, listing.repository)
        folder.write_listing(
            Stored(wanted.revision, listing, wanted.names, complete=not (wanted.pinned or settings.is_selective))
        )
        inventory = take_inventory(folder, wanted.files, patience, report, verify=settings.verify, record=True)
        _require_room(folder, inventory)
        _tell(directory, inventory)
        fetched = fetch_missing(open_session, folder, wanted, inventory, settings.max_workers, report)
        if settings.is_selective:
            tell(folder, wanted)
        removed = () if settings.is_selective else tidy(folder, wanted)
    return [*(FetchedFile(file, "there") for file in inventory.there), *fetched], removed


def _tell(directory: Path, inventory: Inventory) -> None:
    begun, missing = sum(inventory.begun.values()), inventory.missing_bytes
    logger.info(
        "%s: %s bytes are there, %s bytes are still to be fetched, %s bytes of unfinished files are kept",
        directory,
        *(f"{nbytes:,}" for nbytes in (inventory.size - missing - begun, missing, begun)),
    )


def _found(
    open_session: Session, wanted: Wanted, directory: Path, settings: DownloadSettings, report: Report
) -> tuple[list[FetchedFile], tuple[str, ...]]:
    """All wanted files, without a network and without a byte written: they may lie where nothing can be."""
    listing = wanted.listing
    with Folder.look(directory, listing.repository) as folder:
        inventory = take_inventory(
            folder, wanted.files, open_session.patience, report, verify=settings.verify, record=False
        )
        if inventory.missing:
            raise _lacking(directory, wanted, inventory)
        if not settings.is_selective:
            warn_of_others(folder, wanted)
    return [FetchedFile(file, "there") for file in inventory.there], ()


def _lacking(directory: Path, wanted: Wanted, inventory: Inventory) -> IntegrityError | NetworkError:
    """What to say offline of files that are not there, or not as they must be."""
    damaged = [file.name for file in inventory.missing if file.name in inventory.damaged]
    missing = [file.name for file in inventory.missing if file.name not in inventory.damaged]
    faults = [
        f"{named(names)} {are(names)} {fault}" for names, fault in ((missing, "missing"), (damaged, "damaged")) if names
    ]
    kind = IntegrityError if wanted.pinned and damaged else NetworkError
    return kind(
        f"{directory}: of {wanted.listing.repository} {', '.join(faults)}, and the Hub must not be asked.",
        hint=_OFFLINE,
        missing=missing,
        damaged=damaged,
    )


def _require_room(folder: Folder, inventory: Inventory) -> None:
    needed, free = inventory.missing_bytes, folder.free_bytes()
    if needed > free:
        raise DiskFullError(
            f"{_too_small(folder.path, needed, free)}.",
            hint="Free some space, or download to another directory. What was fetched stays.",
            needed=needed,
            free=free,
        )


def _too_small(directory: Path, needed: int, free: int) -> str:
    return f"{directory}: {needed:,} bytes are still to be fetched, {free:,} bytes are free"
