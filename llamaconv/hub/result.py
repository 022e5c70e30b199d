"""What a download did, or would do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llamaconv.hub.repository import RemoteFile

__all__ = ["DownloadPlan", "DownloadResult", "FetchedFile", "PlannedFile", "Skipped"]


@dataclass(frozen=True)
class Skipped:
    """Files of the repository that were not wanted.

    Attributes:
        what: A name, or how many files of which kind.
        why: In a few words.
        names: Of all of them.
    """

    what: str
    why: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class FetchedFile:
    """A file that is whole and has the right hash.

    Attributes:
        file: What it is.
        state: Whether it was there already, was fetched from its first byte on, or continued from an earlier run.
        fetched: Bytes that arrived for it, those that were thrown away included.
    """

    file: RemoteFile
    state: Literal["there", "fetched", "resumed"]
    fetched: int = 0


@dataclass(frozen=True)
class DownloadResult:
    """What a download did.

    Attributes:
        repository: ``org/name``.
        revision: As asked for.
        commit: What it was.
        directory: Where the files are.
        files: All that were wanted, in the order of their names.
        skipped: What was not.
        removed: Names of files that an earlier download had brought and that would have been read with this commit's.
        retries: How often something was tried again.
        mismatches: How many of these because of wrong bytes.
        seconds: It took.
        lock: The lock file that was written.
    """

    repository: str
    revision: str
    commit: str
    directory: Path
    files: tuple[FetchedFile, ...]
    skipped: tuple[Skipped, ...]
    removed: tuple[str, ...]
    retries: int
    mismatches: int
    seconds: float
    lock: Path | None

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {
            **_whence(self),
            "files": [{**_described(one.file), "state": one.state, "fetched": one.fetched} for one in self.files],
            "skipped": [asdict(one) for one in self.skipped],
            "removed": list(self.removed),
            "bytes": sum(one.file.size for one in self.files),
            "fetched_bytes": sum(one.fetched for one in self.files),
            "retries": self.retries,
            "mismatches": self.mismatches,
            "seconds": self.seconds,
            "lock": None if self.lock is None else str(self.lock),
        }


@dataclass(frozen=True)
class PlannedFile:
    """A file as a download would find it.

    Attributes:
        file: What it is.
        there: Bytes of it that need not be fetched.
        state: "to check" is a file of the right size whose hash nobody knows yet; "outdated" one that an earlier
            download brought and another commit has; "to replace" any other file of that name.
    """

    file: RemoteFile
    there: int
    state: Literal["there", "partial", "missing", "to check", "outdated", "to replace"]


@dataclass(frozen=True)
class DownloadPlan:
    """What a download would do.

    Attributes:
        repository, revision, commit, directory, skipped: As in DownloadResult.
        files: All that are wanted.
        removes: Names of files that it would remove.
        free_bytes: On the file system of the directory.
    """

    repository: str
    revision: str
    commit: str
    directory: Path
    files: tuple[PlannedFile, ...]
    skipped: tuple[Skipped, ...]
    removes: tuple[str, ...]
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        """To fetch."""
        return sum(one.file.size - one.there for one in self.files)

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {
            **_whence(self),
            "files": [{**_described(one.file), "there": one.there, "state": one.state} for one in self.files],
            "skipped": [asdict(one) for one in self.skipped],
            "removes": list(self.removes),
            "bytes": sum(one.file.size for one in self.files),
            "missing_bytes": self.missing_bytes,
            "free_bytes": self.free_bytes,
        }


def _whence(told: DownloadResult | DownloadPlan) -> dict[str, Any]:
    return {
        "repository": told.repository,
        "revision": told.revision,
        "commit": told.commit,
        "directory": str(told.directory),
    }


def _described(file: RemoteFile) -> dict[str, Any]:
    digest = file.digest
    return {"name": file.name, "size": file.size, "algorithm": digest.algorithm, "hexdigest": digest.hexdigest}
