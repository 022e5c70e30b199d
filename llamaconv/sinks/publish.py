"""An output directory that appears whole or not at all.

Everything is written beside it, in ``OUT.partial``; the last step is one rename. Whatever ends the process,
OUT is absent, or the old one, or whole. Where OUT cannot be renamed (a mount point, as in a container, or the
current directory), work goes into ``OUT/.partial``, the files are moved up, and the manifest, moved last, is
the mark. (A kill in the instant after either leaves an empty-handed ``.lock`` file behind, which harms
nobody.) A working directory that a dead run left behind is cleared by the next one: nothing goes on from it
yet, although whole shards in it are final.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from llamaconv.disk import clear, make_parents, remove_empty, sync_directory, sync_tree, writing
from llamaconv.errors import DiskFullError, OutputError, OutputExistsError, UsageError
from llamaconv.sinks.lock import LOCK, Lock, claim, take
from llamaconv.sinks.manifest import MANIFEST, write_json
from llamaconv.sinks.rename import aside_of, is_mount_point, move, replace

__all__ = ["Publication", "require_apart"]

logger = logging.getLogger(__name__)

_INSIDE = ".partial"
_LOST_AND_FOUND = "lost+found"  # every fresh ext4 volume has one


class Publication:
    """The context in which an output directory is written.

    On entry, before a byte is written, all that could forbid the output is checked. ``commit`` publishes;
    leaving without it publishes nothing. What was written by then stays in ``directory``; if nothing was, no
    trace stays.

    Args:
        out: The directory to be. A symbolic link in its place is refused, never followed.
        overwrite: Whether it may replace a directory that holds something.
        bytes_needed: What the output will take on disk, beside what is there.
    """

    def __init__(self, out: Path, overwrite: bool, bytes_needed: int) -> None:
        self.out = _anchored(out)
        self.overwrite = overwrite
        self.bytes_needed = bytes_needed
        self._in_place = os.path.isdir(self.out) and (is_mount_point(self.out) or _is_current(self.out))
        self._lock: Lock | None = None
        self._parents: list[Path] = []

    @property
    def directory(self) -> Path:
        """The working folder: write everything here."""
        return self.out / _INSIDE if self._in_place else _partial_of(self.out)

    def require_free(self) -> None:
        """Refuse an OUT that is there and may not be replaced. Entering the context asks this too.

        Raises:
            OutputExistsError: It is.
        """
        out = self.out
        if out.is_symlink():
            fault, hint = (
                f"is a symbolic link to {os.readlink(out)}",
                "Name the directory itself, or remove the link.",
            )
        elif not os.path.lexists(out):
            return
        elif not out.is_dir():
            fault, hint = "is a file", "Choose a directory."
        elif not self._content():
            return
        elif not self.overwrite:
            fault, hint = "exists and is not empty", "Choose another output, or --overwrite to replace it."
        elif any(_real(Path(place)).is_relative_to(out) for place in (os.curdir, os.path.expanduser("~"))):
            fault, hint = (
                "holds the current or the home directory and is not replaced",
                "Choose another output.",
            )
        elif os.path.lexists(aside_of(out)):
            fault = f"was being replaced when a run was killed; {aside_of(out)} is what it held"
            hint = "Move that back, or remove it."
        else:
            return
        raise OutputExistsError(f"{out} {fault}.", hint=hint, file=str(out))

    def __enter__(self) -> Self:
        """Check, and take the working folder.

        Raises:
            OutputExistsError: OUT, or something in the way of the work, is there already.
            OutputLockedError: Another process is writing the same output.
            DiskFullError: Less than ``bytes_needed`` is free.
            OutputError: It cannot be written there.
        """
        with writing(self.out):
            self.require_free()
            self._parents = make_parents(self.out.parent)
            try:
                self._lock = claim(self.directory)
                self.require_free()  # another run may just have published
                self._clear_stale()
                self._require_space()
            except BaseException:
                self._withdraw()
                raise
        return self

    def commit(self, manifest: Mapping[str, object]) -> None:
        """Write the manifest, make everything durable and publish it.

        Raises:
            OutputExistsError: Another run published first.
            DiskFullError, OutputError: The file system refuses; the result stays in ``directory``.
            ValueError: Outside of the context, or a second time.
        """
        if self._lock is None:
            raise ValueError("nothing to commit: the publication is not open")
        write_json(self.directory / MANIFEST, manifest)
        with writing(self.directory):
            sync_tree(self.directory)
        try:
            self.require_free()
            old = self._publish()
        except OSError as error:
            raise OutputError(
                f"{self.out}: the result cannot be put there: {error.strerror}.",
                hint=f"It is complete in {self.directory}: move it by hand.",
                file=str(self.out),
            ) from error
        self._lock.remove()
        self._release()
        if self._in_place:
            remove_empty([self.directory])
        if old is not None:
            _discard(old)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._withdraw()

    def _content(self) -> list[str]:
        """The names in OUT that are somebody's."""
        ours = {_INSIDE, _LOST_AND_FOUND} if self._in_place else set()
        return sorted(set(os.listdir(self.out)) - ours)

    def _clear_stale(self) -> None:
        if len(os.listdir(self.directory)) > 1:
            logger.warning("%s: cleared what an unfinished run had left there", self.directory)
            clear(self.directory, keep=[LOCK])

    def _require_space(self) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < self.bytes_needed:
            raise DiskFullError(
                f"{self.out}: the output takes {self.bytes_needed} bytes, but only {free} are free there.",
                hint="Free some space or write elsewhere.",
                needed=self.bytes_needed,
                free=free,
            )

    def _publish(self) -> Path | None:
        """Make the working folder the output; returns where the old one lies now, if it is to be removed."""
        if self._in_place:
            self._move_up()
        elif self.overwrite:
            return replace(self.directory, self.out)
        else:
            move(self.directory, self.out)
        return None

    def _move_up(self) -> None:
        """Publish where OUT itself must stay: without a manifest, it is no result of ours."""
        out = self.out
        if self.overwrite:
            (out / MANIFEST).unlink(missing_ok=True)
            sync_directory(out)
            clear(out, keep=[_INSIDE, _LOST_AND_FOUND])
        for name in sorted(os.listdir(self.directory)):
            if name not in (LOCK, MANIFEST):
                os.rename(self.directory / name, out / name)
        sync_directory(out)
        os.rename(self.directory / MANIFEST, out / MANIFEST)
        sync_directory(out)

    def _withdraw(self) -> None:
        """Give up the lock, and the working folder too if nothing was written to it."""
        if self._lock is not None and self._lock.is_at(self.directory) and os.listdir(self.directory) == [LOCK]:
            self._lock.remove()
            remove_empty([self.directory])
        remove_empty(self._parents)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._parents = []


def require_apart(source: Path, out: Path) -> None:
    """Refuse an output that lies in its source, or the other way round, by any name either goes by.

    Raises:
        UsageError: They are the same, or one contains the other; or the source is where the work would go.
    """
    partial = _partial_of(_anchored(out))
    inside, around = _contains(source, out), _contains(out, source)
    if inside and around:
        relation = "are the same"
    elif inside:
        relation = "must lie apart, but the output is inside the source"
    elif around:
        relation = "must lie apart, but the source is inside the output"
    elif _contains(partial, source):
        relation = f"must lie apart, but the output is prepared in {partial}"
    else:
        return
    raise UsageError(
        f"The source {source} and the output {out} {relation}.",
        hint="Choose an output elsewhere.",
        source=str(source),
        output=str(out),
    )


def _contains(outer: Path, inner: Path) -> bool:
    """Whether ``inner`` is ``outer`` or below it: by name, or by identity (bind mounts, letter case)."""
    resolved = _real(inner)
    if resolved.is_relative_to(_real(outer)):
        return True
    places = [place for place in (resolved, *resolved.parents) if os.path.exists(place)]
    return os.path.exists(outer) and any(os.path.samefile(place, outer) for place in places)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _anchored(out: Path) -> Path:
    """``out`` as an absolute path with its own name kept: only what it lies in is resolved."""
    return _real(out) if out.name in ("", "..") else _real(out.parent) / out.name


def _partial_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _is_current(path: Path) -> bool:
    return os.path.exists(os.curdir) and os.path.samefile(path, os.curdir)


def _discard(old: Path) -> None:
    """Remove what was replaced. The output is published by now, so a failure is told, not raised."""
    try:
        lock = take(old)
        if lock is None:
            return
        try:
            clear(old, keep=[LOCK])  # the lock goes last: a run that finds the rest knows it for ours
            lock.remove()
            remove_empty([old])
        finally:
            lock.release()
    except (OSError, OutputError) as error:
        logger.warning("%s: what the output replaced could not be removed: %s", old, error)
