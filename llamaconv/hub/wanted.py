"""What is to be downloaded: one commit, and of its files those that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llamaconv.errors import HubError, IntegrityError, NetworkError, UsageError
from llamaconv.hub.api import collect, list_page, resolve
from llamaconv.hub.client import Client
from llamaconv.hub.lockfile import Lock, differences, read_lock
from llamaconv.hub.names import require_safe
from llamaconv.hub.reference import DEFAULT_REVISION
from llamaconv.hub.repository import Listing, RemoteFile
from llamaconv.hub.result import Skipped
from llamaconv.hub.retry import Mirrors, Patience, Trials
from llamaconv.hub.selection import select
from llamaconv.hub.settings import DownloadSettings
from llamaconv.hub.stored_listing import Stored

__all__ = ["Wanted", "from_hub", "from_store", "locked"]


@dataclass(frozen=True)
class Wanted:
    """The files of a download.

    Attributes:
        revision: As asked for.
        listing: Of all the repository has at the commit, or of what the lock file names.
        files: Those that are wanted.
        skipped: The others.
        pinned: By a lock file: only these bytes will do.
    """

    revision: str
    listing: Listing
    files: tuple[RemoteFile, ...]
    skipped: tuple[Skipped, ...] = ()
    pinned: bool = False

    @classmethod
    def chosen(cls, revision: str, listing: Listing, settings: DownloadSettings) -> Wanted:
        """By names, by patterns, or one complete model.

        Raises:
            HubError, UsageError: As ``select``.
        """
        selection = select(listing, settings.files, settings.include, settings.exclude)
        return cls(revision, listing, selection.chosen, tuple(Skipped(what, why) for what, why in selection.skipped))

    @classmethod
    def of_lock(cls, lock: Lock) -> Wanted:
        """All that a lock file names."""
        return cls(lock.revision, lock.listing, lock.listing.files, pinned=True)

    def refused(self, error: HubError) -> IntegrityError | HubError:
        """The error for a file, or all, that the Hub does not have: with a lock file, a promise broken."""
        if self.pinned and error.facts.get("status") == 404:
            return IntegrityError(
                f"The lock file cannot be reproduced: {error.message}",
                hint="The repository was changed or removed; another --endpoint may still have this commit.",
                **error.facts,
            )
        return error


def from_hub(
    client: Client, mirrors: Mirrors, patience: Patience, repository: str, settings: DownloadSettings
) -> Wanted:
    """Ask the Hub which commit the revision is, and what files it has.

    Raises:
        HubError: It does not say, or has nothing that could be meant.
        UsageError: Patterns match nothing.
        IntegrityError: It is not what the lock file says.
        NetworkError: It could not be asked.
    """
    pinned = locked(repository, settings)
    revision = settings.revision or (pinned.revision if pinned else DEFAULT_REVISION)
    wanted = Wanted.of_lock(pinned) if pinned else None
    try:
        commit = pinned.listing.commit if pinned else _commit(client, mirrors, patience, repository, revision)
        listing = _listing(client, mirrors, patience, repository, commit)
    except HubError as error:
        raise wanted.refused(error) if wanted else error from None
    if pinned:
        names = {file.name for file in pinned.listing}  # the others were not chosen then
        offered = replace(listing, files=tuple(file for file in listing if file.name in names))
        if faults := differences(pinned.listing, offered):
            raise IntegrityError(
                f"{settings.lock}: not what {repository} has at {commit}:\n" + "\n".join(faults),
                hint="One of them was changed. Without --locked the lock file is written anew.",
                file=str(settings.lock),
            )
        assert wanted is not None
        return replace(wanted, listing=listing)
    return Wanted.chosen(revision, listing, settings)


def from_store(stored: Stored | None, repository: str, directory: Path, settings: DownloadSettings) -> Wanted:
    """What the lock file or an earlier download into ``directory`` says, without asking the Hub.

    Raises:
        NetworkError: Neither does.
        HubError, UsageError: As ``select``.
    """
    if pinned := locked(repository, settings):
        return Wanted.of_lock(pinned)
    revision = settings.revision or DEFAULT_REVISION
    known = stored is not None and stored.listing.repository == repository
    if stored is None or not known or revision not in (stored.revision, stored.listing.commit):
        raise NetworkError(
            f"{directory} holds no earlier download of {repository} at {revision}, and the Hub must not be asked.",
            hint="HF_HUB_OFFLINE is set: unset it to download.",
        )
    return Wanted.chosen(revision, stored.listing, settings)


def locked(repository: str, settings: DownloadSettings) -> Lock | None:
    """The lock file to reproduce, if there is one.

    Raises:
        ConfigError: It cannot be read.
        UsageError: It is of another repository or revision, or a selection is asked for too.
    """
    if not settings.locked:
        return None
    if settings.lock is None:
        raise UsageError("What is to be reproduced? `locked` needs the name of a lock file.")
    if settings.files or settings.include or settings.exclude:
        raise UsageError("A lock file says which files are downloaded: none can be chosen beside it.")
    lock = read_lock(settings.lock)
    if lock.listing.repository != repository:
        raise UsageError(f"{settings.lock} is of {lock.listing.repository}, not of {repository}.")
    if settings.revision not in (None, lock.revision, lock.listing.commit):
        raise UsageError(
            f"{settings.lock} is of revision {lock.revision} ({lock.listing.commit}), not of {settings.revision}.",
            hint="Without --locked the lock file is written anew.",
        )
    return lock


def _commit(client: Client, mirrors: Mirrors, patience: Patience, repository: str, revision: str) -> str:
    trials = Trials(patience, repository, mirrors)
    return trials.run(lambda: resolve(client, trials.endpoint, repository, revision, patience.left()))


def _listing(client: Client, mirrors: Mirrors, patience: Patience, repository: str, commit: str) -> Listing:
    files = collect(_pages(client, mirrors, patience, repository, commit), repository)
    require_safe((file.name for file in files), repository)
    return Listing(repository, commit, files)


def _pages(
    client: Client, mirrors: Mirrors, patience: Patience, repository: str, commit: str
) -> Iterator[list[RemoteFile]]:
    trials = Trials(patience, repository, mirrors)
    path: str | None = None

    def page() -> tuple[list[RemoteFile], str | None]:
        return list_page(client, trials.endpoint, repository, commit, path, patience.left())

    while True:
        files, path = trials.run(page)
        trials.progressed()
        yield files
        if path is None:
            return
