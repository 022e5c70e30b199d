"""The lock file of a download: which commit it was, and every file's size and hash, to get exactly that again."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from llamaconv.disk import sync_directory, write_text, writing
from llamaconv.errors import ConfigError, OutputError, UsageError
from llamaconv.hub.folder import STATE
from llamaconv.hub.names import faults
from llamaconv.hub.reference import Reference
from llamaconv.hub.repository import Digest, Listing, RemoteFile
from llamaconv.json_files import config_error, read_object, validated

__all__ = ["Lock", "differences", "read_lock", "require_free_of", "require_place", "write_lock"]

_HINT = "Write it anew with --lock, without --locked."
_NO_FOLDER = "Make its folder, or give --lock another place."


@dataclass(frozen=True)
class Lock:
    """What a download was.

    Attributes:
        revision: As it was asked for: branch, tag or commit.
        listing: The files that were chosen, at the commit that the revision then was.
    """

    revision: str
    listing: Listing


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    size: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")] | None = None
    git_sha1: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{40}\z")] | None = Field(None, alias="git-sha1")

    @model_validator(mode="after")
    def _one_hash(self) -> _File:
        if (self.sha256 is None) == (self.git_sha1 is None):
            raise ValueError("one of sha256 and git-sha1 must be there")
        return self

    def digest(self) -> Digest:
        if self.sha256 is not None:
            return Digest("sha256", self.sha256)
        assert self.git_sha1 is not None  # _one_hash
        return Digest("git-sha1", self.git_sha1)


class _Contents(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: Literal[1]
    repository: str
    revision: str
    commit: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{40}\z")]
    files: Mapping[str, _File]


def require_place(path: Path, directory: Path) -> None:
    """Raise before anything is asked of the Hub what would keep ``write_lock`` from ending a download.

    Args:
        path: Where the lock file is to be; a file that is there will be replaced.
        directory: Where the download goes, which may be missing: it will be made, with what it lies in.

    Raises:
        OutputError: The folder is missing or may not be written, or there is something else in the way.
    """
    folder, root = _real(path.parent), _real(directory)
    try:
        usable = path.is_file() or not os.path.lexists(path)
        _require_folder(path.parent)
    except FileNotFoundError as error:
        if folder.is_relative_to(root) or root.is_relative_to(folder):
            return
        raise OutputError(f"{path}: {error.strerror}.", hint=_NO_FOLDER, file=str(path)) from error
    except OSError as error:
        hint = "Give --lock a place that can be written."
        raise OutputError(f"{path}: {error.strerror}.", hint=hint, file=str(path)) from error
    if not usable:
        raise OutputError(f"{path}: not a regular file.", hint="Give --lock the name of a file.", file=str(path))


def require_free_of(path: Path, directory: Path, names: Iterable[str]) -> None:
    """Raise before the download what it and ``write_lock`` would do to each other.

    Args:
        path: Where the lock file is to be.
        directory: Where the download goes.
        names: Of the files that it brings.

    Raises:
        OutputError: The lock would replace one of them, or be in the way of one, or lie among the download's own
            records, or in a folder that there will not be.
    """
    place, root = _real(path.parent) / path.name, _real(directory)
    if not place.is_relative_to(root):
        return
    own, hint = place.relative_to(root), "Give --lock another name, or a place outside of the directory."
    files = {Path(name) for name in names}
    folders = {folder for file in files for folder in file.parents} | {Path()}
    if own.is_relative_to(STATE):
        fault = f"{path} lies among the download's own records."
    elif own in files:
        fault = f"{path} is one of the files that are downloaded."
    elif own in folders:
        fault = f"{path} is a folder of what is downloaded."
    elif not files.isdisjoint(own.parents):
        fault = f"{path} lies below a file that is downloaded."
    elif own.parent not in folders and not place.parent.is_dir():
        fault, hint = f"{path}: {os.strerror(errno.ENOENT)}.", _NO_FOLDER
    else:
        return
    raise OutputError(fault, hint=hint, file=str(path))


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def _require_folder(folder: Path) -> None:
    if not stat.S_ISDIR(folder.stat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_lock(path: Path, lock: Lock) -> None:
    """Write ``lock`` as JSON with sorted keys, by a rename: the file is the old one or the new one, whatever happens.

    Raises:
        DiskFullError, OutputError: It cannot be written.
    """
    listing = lock.listing
    contents = {
        "version": 1,
        "repository": listing.repository,
        "revision": lock.revision,
        "commit": listing.commit,
        "files": {file.name: {"size": file.size, file.digest.algorithm: file.digest.hexdigest} for file in listing},
    }
    text = json.dumps(contents, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    unfinished = path.parent / f"{path.name}.{os.getpid()}.tmp"  # a process has one download at a time
    with writing(path):
        try:
            write_text(unfinished, text)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync_directory(path.parent)


def read_lock(path: Path) -> Lock:
    """The lock file at ``path``.

    Raises:
        ConfigError: Missing, unreadable, or not what ``write_lock`` writes; names that may not be used on disk.
    """
    if not os.path.lexists(path):
        raise ConfigError(f"{path} does not exist.", hint=_HINT, file=str(path))
    try:
        _, raw = read_object(path)
    except ConfigError as error:
        error.hint = _HINT
        raise
    contents = validated(_Contents, raw, path, hint=_HINT)
    try:
        Reference(contents.repository, contents.revision)
    except UsageError as error:
        raise config_error(path, [error.message.removesuffix(".")], hint=_HINT) from error
    if unsafe := faults(contents.files):
        raise config_error(path, [f"the file name {fault}" for fault in unsafe], hint=_HINT)
    files = (RemoteFile(name, file.size, file.digest()) for name, file in sorted(contents.files.items()))
    return Lock(contents.revision, Listing(contents.repository, contents.commit, tuple(files)))


def differences(expected: Listing, actual: Listing) -> list[str]:
    """What is not in ``actual`` as in ``expected``, a line for each file, by name."""
    then = {file.name: file for file in expected}
    now = {file.name: file for file in actual}
    lines = []
    for name in sorted(then.keys() | now.keys()):
        if name not in now:
            lines.append(f"{name} is missing")
        elif name not in then:
            lines.append(f"{name} is new")
        elif now[name] != then[name]:
            lines.append(f"{name}: {_figures(now[name])} instead of {_figures(then[name])}")
    return lines


def _figures(file: RemoteFile) -> str:
    return f"{file.size} bytes with {file.digest.algorithm} {file.digest.hexdigest}"
