"""What a download is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DownloadSettings"]


@dataclass(frozen=True)
class DownloadSettings:
    """How to download; none of it changes which bytes a file ends up with.

    Attributes:
        revision: Branch, tag or commit; None for the one in the lock file, or else ``main``.
        files: Names of the files wanted, none for a selection.
        include, exclude: Globs over whole names, in which ``*`` crosses slashes.
        token: For the endpoints; None for the one that huggingface_hub knows (``HF_TOKEN``, its login), "" for none.
        proxy: URL of the proxy for everything; None for what the environment says, "" for none.
        endpoints: The Hub and its mirrors, in the order in which they are asked; none for huggingface_hub's endpoint
            (``HF_ENDPOINT``).
        retries: How often something may be tried again without a byte of progress.
        timeout: Longest silence of a connection, in seconds.
        max_wait: Longest pause before trying again, in seconds, whatever the server asks for.
        deadline: For all of it, in seconds; None for none.
        max_workers: Connections at a time.
        verify: Hash finished files again.
        lock: File that records commit, sizes and hashes.
        locked: Reproduce what that file records.
        offline: Ask no network; None for what huggingface_hub says (``HF_HUB_OFFLINE``).
    """

    revision: str | None = None
    files: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    proxy: str | None = field(default=None, repr=False)
    endpoints: tuple[str, ...] = field(default=(), repr=False)  # these three may hold passwords
    retries: int = 8
    timeout: float = 30.0
    max_wait: float = 60.0
    deadline: float | None = None
    max_workers: int = 4
    verify: bool = False
    lock: Path | None = None
    locked: bool = False
    offline: bool | None = None

    @property
    def is_selective(self) -> bool:
        """Whether certain files are asked for, and not one complete model."""
        return bool(self.files or self.include or self.exclude)
