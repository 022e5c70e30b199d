"""What execution hands from step to step: the samples' hidden states and the crew that works on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llamaconv.casts import Loss
from llamaconv.model.workers import Workers
from llamaconv.progress import Progress, Report, silent

if TYPE_CHECKING:  # what only copies tensors does without transformers
    from llamaconv.model.skeleton import Skeleton
    from llamaconv.model.stand_ins import BlockInputs

__all__ = ["LayerReport", "Stream", "record_lengths"]


@dataclass(frozen=True)
class LayerReport:
    """What became of one linear layer.

    Attributes:
        name: Full name of the layer.
        mode: The quantizer's name.
        bits: Width of a code.
        group_size: Columns that share a scale, -1 for all of them.
        error: Relative squared error: of the layer's outputs on the calibration data where there is any, else of
            the weight.
        damping: Fraction of the Hessian's mean diagonal that was added (None without a Hessian).
        damping_raises: How often the damping had to be raised.
        fallback: ``"rtn"`` where the user's fallback took over, else None.
        seconds: Time spent on this layer alone.
    """

    name: str
    mode: str
    bits: int
    group_size: int
    error: float
    damping: float | None = None
    damping_raises: int = 0
    fallback: str | None = None
    seconds: float = 0.0


@dataclass
class Stream:
    """The only mutable state of a run.

    Attributes:
        workers: The crew.
        device: Where forwards run.
        report: Told about progress.
        hidden: Each sample's hidden states [1, L, D] before the next block; empty when nothing is calibrated.
        layers: What became of each linear layer so far.
        losses: What casts lost so far.
        seconds: Time per kind of work.
    """

    workers: Workers
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Report = silent
    hidden: list[Tensor] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _told: Progress | None = None

    def tell(self, progress: Progress) -> None:
        """Report, and remember it for :meth:`now_at`."""
        self._told = progress
        self.report(progress)

    def now_at(self, detail: str) -> None:
        """Report the same progress with another thing in hand: long steps are not silent."""
        if self._told is not None:
            self.report(replace(self._told, detail=detail))

    def spent(self, kind: str, seconds: float) -> None:
        """Add to the time spent on one kind of work."""
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds


def record_lengths(skeleton: Skeleton, sequences: Sequence[Tensor]) -> Mapping[int, tuple[BlockInputs, ...]]:
    """What each block receives, for every distinct length among the sequences."""
    return {length: skeleton.record(length) for length in sorted({len(sequence) for sequence in sequences})}
