"""How the core reports what it is doing: one callback, called often, that must return quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Report", "silent"]


@dataclass(frozen=True)
class Progress:
    """Where a task stands.

    Attributes:
        task: What is being done, the same words from its first report to its last ("quantizing").
        done: How much of it, from 0 to ``total``.
        total: All of it, in ``unit``.
        unit: What is counted: "bytes", "blocks", "samples"; "work" where only the share means anything.
        detail: What is in hand now ("model.layers.3.mlp").
    """

    task: str
    done: float
    total: float
    unit: str
    detail: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report to nobody."""
