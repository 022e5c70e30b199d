"""llamaconv.json of a converted checkpoint: from what, into what, and every hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamaconv.casts import Loss
from llamaconv.tasks.convert_target import Target
from llamaconv.tasks.provenance import libraries, version
from llamaconv.tasks.source import Source

__all__ = ["manifest"]

# Settings that have no say in the bytes.
_LEFT_OUT = ("workers", "overwrite", "verify", "layout")


def manifest(
    settings: Mapping[str, Any],
    source: Source,
    target: Target,
    notes: Sequence[str],
    losses: Sequence[Loss],
    sources: Mapping[str, str],
    outputs: Mapping[str, str],
) -> dict[str, Any]:
    """No paths, no times, nothing that two runs could disagree on.

    Args:
        settings: All settings of the run, by name.
        source, target: What was converted, and into what.
        notes: What the user was told.
        losses: What the dtype lost.
        sources, outputs: sha256 of each file, by name.
    """
    return {
        "tool": "llamaconv",
        "version": version(),
        "libraries": libraries(),
        "task": "convert",
        "settings": {name: value for name, value in settings.items() if name not in _LEFT_OUT and value is not None},
        "source_layout": source.layout.name,
        "source": dict(sorted(sources.items())),
        "layout": target.layout.name,
        "losses": sorted(str(loss) for loss in losses),
        "notes": list(notes),
        "outputs": dict(sorted(outputs.items())),
    }
