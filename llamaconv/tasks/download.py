"""Download a checkpoint from the Hub: every byte that its hashes promise, or one sentence saying what stopped it."""

from __future__ import annotations

from pathlib import Path

from llamaconv.hub import snapshot
from llamaconv.hub.result import DownloadPlan, DownloadResult
from llamaconv.hub.settings import DownloadSettings
from llamaconv.progress import Report, silent

__all__ = ["DownloadPlan", "DownloadResult", "DownloadSettings", "download", "plan"]

_DEFAULTS = DownloadSettings()


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
    return snapshot.download(repository, directory, settings, report)


def plan(repository: str, directory: Path, settings: DownloadSettings = _DEFAULTS) -> DownloadPlan:
    """What ``download`` would do; nothing is written.

    Raises:
        LlamaconvError: As ``download``, as far as that can be known without writing.
    """
    return snapshot.plan(repository, directory, settings)
