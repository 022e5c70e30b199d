"""A report that is written when the work is done, into a place that was found good before it began."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamaconv.disk import write_text, writing
from llamaconv.errors import OutputError

__all__ = ["report_file"]


@contextmanager
def report_file(path: Path | None) -> Iterator[Callable[[str], None]]:
    """The context in which work is done that will be reported in ``path``.

    The report is begun beside its place on entry, which shows that it can be written there; it is put in
    place when it is complete.

    Args:
        path: None for no report.

    Yields:
        What takes the report's text.

    Raises:
        OutputError: It cannot be written there.
    """
    if path is None:
        yield lambda text: None
        return
    place = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
    with writing(path):
        usable = place.is_file() or not place.exists()
    if not usable:
        raise OutputError(f"{path}: not a regular file.", hint="Give --report the name of a file.", file=str(path))
    begun = place.with_name(f".{place.name}.{os.getpid()}.partial")

    def write(text: str) -> None:
        with writing(path):
            write_text(begun, text)
            begun.replace(place)

    with writing(path):
        begun.touch(exist_ok=False)
    try:
        yield write
    finally:
        with suppress(FileNotFoundError):
            begun.unlink()
