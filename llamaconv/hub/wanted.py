"""What is to be downloaded: one commit, and of its files those that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from llamaconv.errors import HubError, IntegrityError, NetworkError, OutputError, UsageError
from llamaconv.hub.api import collect, list_page, resolve
from llamaconv.hub.folder import Folder
from llamaconv.hub.lockfile import Lock, differences, read_lock
from llamaconv.hub.names import require_safe, unusable
from llamaconv.hub.reference import DEFAULT_REVISION
from llamaconv.hub.repository import Listing, RemoteFile
from llamaconv.hub.result import Skipped
from llamaconv.hub.retry import Trials
from llamaconv.hub.selection import grouped, select
from llamaconv.hub.session import Session
from llamaconv.hub.settings import DownloadSettings
from llamaconv.hub.small_files import reader, reader_offline
from llamaconv.hub.stored_listing import Stored

__all__ = ["Wanted", "from_hub", "from_store", "locked"]


@dataclass(frozen=True)
class Wanted:
    """The files of a download.

    Attributes:
        revision: As asked for.
        listing: Of all the repository has at the commit and that can be a file here, or of what the lock file names.
        files: Those that are wanted.
        skipped: The others.
        pinned: By a lock file: only these bytes will do.
    """

    revision: str
    listing: Listing
    files: tuple[RemoteFile, ...]
    skipped: tuple[Skipped, ...] = ()
    pinned: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that are wanted."""
        return tuple(file.name for file in self.files)

    @classmethod
    def chosen(
        cls, revision: str, listing: Listing, settings: DownloadSettings, read: Callable[[RemoteFile], bytes]
    ) -> Wanted:
        """By names, by patterns, or one complete model.

        Raises:
            HubError, UsageError: As ``select``. Or what ``read`` raises.
        """
        selection = select(listing, settings.files, settings.include, settings.exclude, read)
        return cls(revision, listing, selection.chosen, selection.skipped)

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


def from_hub(open_session: Session, repository: str, directory: Path, settings: DownloadSettings) -> Wanted:
    """Ask the Hub which commit the revision is, what files it has, and for what an index of weights says.

    Args:
        open_session: Whom to ask.
        repository: ``org/name``.
        directory: Where that index may be already.
        settings: What is wanted.

    Raises:
        HubError: It does not say, or has nothing that could be meant.
        UsageError: Patterns match nothing.
        IntegrityError: It is not what the lock file says, or an index not what the Hub says.
        NetworkError: It could not be asked.
        OutputError: Something is in the way in the directory.
    """
    pinned = locked(repository, settings)
    revision = settings.revision or (pinned.revision if pinned else DEFAULT_REVISION)
    try:
        if pinned:
            return _as_pinned(pinned, open_session, settings)
        commit = _commit(open_session, repository, revision)
        listing, left_out = _listing(open_session, repository, commit)
        wanted = Wanted.chosen(revision, listing, settings, reader(open_session, listing, directory))
    except NetworkError as error:
        stored = _stored(directory, repository)
        if stored is not None and _answers(stored, repository, revision):
            error.hint = f"{error.hint or ''} HF_HUB_OFFLINE=1 works from what is in {directory}.".lstrip()
        raise
    return replace(wanted, skipped=(*wanted.skipped, *left_out))


def _as_pinned(pinned: Lock, open_session: Session, settings: DownloadSettings) -> Wanted:
    """What a lock file names, which is what the Hub has."""
    repository, commit = pinned.listing.repository, pinned.listing.commit
    wanted = Wanted.of_lock(pinned)
    try:
        listing, _ = _listing(open_session, repository, commit)
    except HubError as error:
        raise wanted.refused(error) from None
    names = {file.name for file in pinned.listing}  # the others were not chosen then
    offered = replace(listing, files=tuple(file for file in listing if file.name in names))
    if faults := differences(pinned.listing, offered):
        raise IntegrityError(
            f"{settings.lock}: not what {repository} has at {commit}:\n" + "\n".join(faults),
            hint="One of them was changed. Without --locked the lock file is written anew.",
            file=str(settings.lock),
        )
    return replace(wanted, listing=listing)


def from_store(stored: Stored | None, repository: str, directory: Path, settings: DownloadSettings) -> Wanted:
    """What the lock file or an earlier download into ``directory`` says, without asking the Hub.

    Raises:
        NetworkError: Neither does, or an index of weights is not there.
        HubError, UsageError: As ``select``.
        OutputError: Something is in the way in the directory.
    """
    if pinned := locked(repository, settings):
        return Wanted.of_lock(pinned)
    revision = settings.revision or DEFAULT_REVISION
    if stored is None or not _answers(stored, repository, revision):
        raise NetworkError(
            f"{directory} holds no earlier download of {repository} at {revision}, and the Hub must not be asked.",
            hint="HF_HUB_OFFLINE is set: unset it to download.",
        )
    wanted = Wanted.chosen(revision, stored.known, settings, reader_offline(stored.listing, directory))
    return replace(wanted, listing=stored.listing)


def _stored(directory: Path, repository: str) -> Stored | None:
    with suppress(OutputError), Folder.look(directory, repository) as folder:
        return folder.read_listing()
    return None


def _answers(stored: Stored, repository: str, revision: str) -> bool:
    """Whether ``stored`` says what the repository has at the revision."""
    return stored.listing.repository == repository and revision in (stored.revision, stored.listing.commit)


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
    if settings.is_selective:
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


def _commit(open_session: Session, repository: str, revision: str) -> str:
    patience = open_session.patience
    trials = Trials(patience, repository, open_session.mirrors)
    return trials.run(lambda: resolve(open_session.client, trials.endpoint, repository, revision, patience.left()))


def _listing(open_session: Session, repository: str, commit: str) -> tuple[Listing, tuple[Skipped, ...]]:
    """The files of a commit, and those of them that cannot be files here."""
    files = collect(_pages(open_session, repository, commit), repository)
    require_safe((file.name for file in files), repository)
    reasons = _unusable(file.name for file in files)
    usable = tuple(file for file in files if file.name not in reasons)
    return Listing(repository, commit, usable), grouped(reasons)


def _unusable(names: Iterable[str]) -> dict[str, str]:
    return {name: f"cannot be a file here: its name {reason}" for name in names if (reason := unusable(name))}


def _pages(open_session: Session, repository: str, commit: str) -> Iterator[list[RemoteFile]]:
    patience = open_session.patience
    trials = Trials(patience, repository, open_session.mirrors)
    path: str | None = None

    def page() -> tuple[list[RemoteFile], str | None]:
        return list_page(open_session.client, trials.endpoint, repository, commit, path, patience.left())

    while True:
        files, path = trials.run(page)
        trials.progressed()
        yield files
        if path is None:
            return
