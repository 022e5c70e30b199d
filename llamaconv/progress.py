"""How the core reports what it is doing: one callback, called often, that must return quickly.

Reports may come from several threads, those of one task in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Report", "silent"]


@dataclass(frozen=True)
class Progress:
    """Where a task stands.

    A report of less than an earlier one says that the task is done once more. Only of a part, and of a task that has
    parts, it says that what was done turned out to be no good.

    Attributes:
        task: What is being done, the same words from its first report to its last ("quantizing").
        done: How much of it, from 0 to ``total``.
        total: All of it, in ``unit``.
        unit: What is counted: "bytes", "blocks", "samples"; "work" where only the share means anything.
        detail: What is in hand now ("model.layers.3.mlp").
        within: The task that this one is a part of, which reports first and counts what its parts do as its own.
    """

    task: str
    done: float
    total: float
    unit: str
    detail: str = ""
    within: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report to nobody."""
