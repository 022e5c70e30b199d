"""Whose words reach the screen: ours always, those of the libraries we stand on with ``-v``."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from llamaconv.cli.streams import note

__all__ = ["logs"]

# Read by the libraries as they are imported. What the user has set stays.
_HUSH = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-all",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
# Set even with -v: it is about threads, and only its absence is talked about.
_ALWAYS = {"TOKENIZERS_PARALLELISM": "false"}
# torch gives its loggers handlers of their own; this one tells of deprecated calls in other libraries.
_TALKATIVE = "torch.utils._pytree"


class Notes(logging.Handler):
    """Log records as lines on stderr: ``Note: ...`` for ours, the logger's name for others."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a library's slip in a log call must not end the run
            self.handleError(record)
            return
        ours = record.name.partition(".")[0] == "llamaconv"
        note(text, label="Note: " if ours else f"{record.name}: ")


@contextmanager
def logs(verbose: bool) -> Iterator[None]:
    """The context in which a command runs: our log records become notes, others stay off the screen.

    Args:
        verbose: Show more of ours (INFO), and what the libraries say.
    """
    ours, root, handler = logging.getLogger("llamaconv"), logging.getLogger(), Notes()
    before = ours.level, ours.propagate
    # With a handler at the root, Python does not fall back to printing the warnings of unconfigured loggers.
    others: logging.Handler = handler if verbose else logging.NullHandler()
    added = {name: value for name, value in {**_ALWAYS, **({} if verbose else _HUSH)}.items() if name not in os.environ}
    with warnings.catch_warnings():
        if not verbose and not sys.warnoptions:
            warnings.simplefilter("ignore")
        ours.addHandler(handler)
        root.addHandler(others)
        if not verbose:
            logging.getLogger(_TALKATIVE).addFilter(_nothing)
        ours.setLevel(logging.INFO if verbose else logging.WARNING)
        ours.propagate = False
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                os.environ.pop(name, None)
            ours.setLevel(before[0])
            ours.propagate = before[1]
            ours.removeHandler(handler)
            root.removeHandler(others)
            logging.getLogger(_TALKATIVE).removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    """A filter that lets nothing through."""
    return False
