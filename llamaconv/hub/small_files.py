"""A small file that is read before anything is downloaded: from the local directory, or else from the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from llamaconv.disk import writing
from llamaconv.errors import HubError, NetworkError
from llamaconv.hub.api import MAX_BYTES, file_body
from llamaconv.hub.beneath import Tree
from llamaconv.hub.repository import Listing, RemoteFile
from llamaconv.hub.retry import Flaw, Trials
from llamaconv.hub.session import Session

__all__ = ["reader", "reader_offline"]


def reader(open_session: Session, listing: Listing, directory: Path) -> Callable[[RemoteFile], bytes]:
    """What reads a file of ``listing``, and asks the Hub if ``directory`` does not have it.

    It raises:
        HubError: The Hub refuses, or the file has over 64 MB.
        NetworkError: The retries are used up.
        IntegrityError: They are used up, and the answers were not what was promised.
        OutputError: Something is in the way in the directory.
        Stopped: The work was stopped.
    """

    def read(file: RemoteFile) -> bytes:
        _require_small(listing, file)
        kept = _kept(directory, file)
        return _fetched(open_session, listing, file) if kept is None else kept

    return read


def reader_offline(listing: Listing, directory: Path) -> Callable[[RemoteFile], bytes]:
    """What reads a file of ``listing`` from ``directory``.

    It raises:
        HubError: The file has over 64 MB.
        NetworkError: It is not there, or is another one.
        OutputError: Something is in the way in the directory.
    """

    def read(file: RemoteFile) -> bytes:
        _require_small(listing, file)
        kept = _kept(directory, file)
        if kept is None:
            there = os.path.lexists(directory / file.name)
            fault, other = ("damaged", "missing") if there else ("missing", "damaged")
            raise NetworkError(
                f"{directory}: of {listing.repository} {file.name} is {fault}, and the Hub must not be asked.",
                hint="HF_HUB_OFFLINE is set: unset it to download.",
                **{fault: [file.name], other: []},
            )
        return kept

    return read


def _require_small(listing: Listing, file: RemoteFile) -> None:
    if file.size > MAX_BYTES:
        raise HubError(
            f"{listing.repository}: {file.name} has {file.size:,} bytes, too many to read it beforehand.",
            hint="Name the files that you want, or choose them with --include.",
            repository=listing.repository,
            file=file.name,
        )


def _kept(directory: Path, file: RemoteFile) -> bytes | None:
    """What lies under the name of ``file``, if that is it."""
    with writing(directory / file.name), closing(Tree.look(directory)) as tree:
        found = tree.status(file.name)
        data = tree.read(file.name) if found is not None and found.st_size == file.size else None
    return data if data is not None and _digest(file, data) == file.digest.hexdigest else None


def _fetched(open_session: Session, listing: Listing, file: RemoteFile) -> bytes:
    patience = open_session.patience
    trials = Trials(patience, file.name, open_session.mirrors)

    def attempt() -> bytes:
        data = file_body(
            open_session.client, trials.endpoint, listing.repository, listing.commit, file, patience.left()
        )
        expected, found = file.digest.hexdigest, _digest(file, data)
        if found != expected:
            raise Flaw(
                f"its {file.digest.algorithm} is {found}, and the Hub promises {expected}",
                file=file.name,
                expected=expected,
                found=found,
            )
        return data

    return trials.run(attempt)


def _digest(file: RemoteFile, data: bytes) -> str:
    hasher = file.digest.hasher(file.size)
    hasher.update(data)
    return hasher.hexdigest()
