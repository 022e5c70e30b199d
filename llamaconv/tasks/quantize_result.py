"""What quantizing a checkpoint came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamaconv.model.stream import LayerReport

__all__ = ["QuantizeResult"]


@dataclass(frozen=True)
class QuantizeResult:
    """What came of it.

    Attributes:
        out: The checkpoint.
        mode: How it was quantized.
        share_quantized: Quantized parameters over all 2-D parameters of the decoder blocks.
        layers: What became of each layer.
        shards: Weight files.
        bytes: Of tensor data.
        bits_per_weight: Of the quantized layers, with scales, zero points and indices.
        notes: What the user should know.
        runtimes: ``"yes"`` per runtime, or why not.
        seconds: Of the whole run; ``stage_seconds`` per kind of work.
        peak_rss: Of the whole process, bytes.
    """

    out: Path
    mode: str
    share_quantized: float
    layers: tuple[LayerReport, ...]
    shards: int
    bytes: int
    bits_per_weight: float
    notes: tuple[str, ...]
    runtimes: Mapping[str, str]
    seconds: float
    stage_seconds: Mapping[str, float]
    peak_rss: int

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return asdict(self) | {"out": str(self.out)}
