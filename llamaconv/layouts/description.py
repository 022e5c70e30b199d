"""What a layout's own files say about a model, told as a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaconv.tensors import TensorSpec

__all__ = ["Described", "Given", "Native"]


@dataclass(frozen=True)
class Given:
    """Facts that the user states, for what a layout's files leave open; None where he does not.

    Attributes:
        rope_theta: Base of the rotary frequencies.
        rope_factor: Of Llama 3's scaling of the rotary frequencies.
        max_positions: The longest sequence.
        norm_eps: Epsilon of the RMS norms.
        vocab_size: Without padding.
        heads: Number of query heads.
        tied: Whether the head shares the embedding's weight. (Set from the tensors where they are there.)
    """

    rope_theta: float | None = None
    rope_factor: float | None = None
    max_positions: int | None = None
    norm_eps: float | None = None
    vocab_size: int | None = None
    heads: int | None = None
    tied: bool | None = None


@dataclass(frozen=True)
class Native:
    """What there is to read in a layout's own files.

    Attributes:
        path: Of the description (``params.json``, ``model_config.yaml``), or of the weights where there is none;
            for messages.
        fields: What the description holds; empty where the layout has none.
        specs: The tensors under the layout's names; of tensor-parallel rank 0, if there are several.
        ranks: Files over which tensors are split.
        given: What the user states.
    """

    path: Path
    fields: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]
    ranks: int = 1
    given: Given = field(default_factory=Given)


@dataclass(frozen=True)
class Described:
    """A config.json that says what a layout's files said.

    Attributes:
        raw: Its content, as transformers reads it (4.57 and 5 alike).
        notes: Each fact that the files do not carry and that took its usual value, with the option that states it.
    """

    raw: Mapping[str, Any]
    notes: tuple[str, ...] = ()
