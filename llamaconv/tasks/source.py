"""A checkpoint in whatever layout, as Hugging Face would name its tensors and describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig
from llamaconv.layouts.quantized import QuantizedLayer
from llamaconv.layouts.rules import Layout, Rule
from llamaconv.layouts.view import Tensors, View
from llamaconv.model.dense_view import DenseView
from llamaconv.quantizers.base import Dequantizer
from llamaconv.quantizers.modes import quantizer_of_checkpoint
from llamaconv.sources.open import Checkpoint

__all__ = ["Source", "contradictions"]

# What computes the model. The rest of a config.json is habit, or the tokenizer's.
_FACTS = (
    *("model_type", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim", "vocab_size"),
    *("tied", "rope_theta", "rope_scaling", "norm_eps", "experts", "experts_per_token"),
)


@dataclass(frozen=True)
class Source:
    """A checkpoint whose layout is known and whose tensors its description accounts for.

    Attributes:
        checkpoint: Its files.
        layout: How they name, fuse and split tensors.
        config: What the model is, as config.json.
        rules: From Hugging Face's names to the layout's; none where they are the same.
        layers: The layers that are stored quantized, under the layout's names.
        description: The file that says what the model is, None if there is none.
        notes: Facts that took their usual value because no file carries them.
        quantization: How it is quantized, None for a dense checkpoint.
    """

    checkpoint: Checkpoint
    layout: Layout
    config: ModelConfig
    rules: tuple[Rule, ...]
    layers: tuple[QuantizedLayer, ...]
    description: Path | None
    notes: tuple[str, ...] = ()
    quantization: Mapping[str, Any] | None = None

    @property
    def stored(self) -> Tensors:
        """The tensors as they are in the files, under the layout's names."""
        return self.checkpoint.reader

    @property
    def dequantizer(self) -> Dequantizer | None:
        """What reads its quantized layers, None if it is dense.

        Raises:
            UnsupportedError: It is quantized by a method that is not read.
        """
        return None if self.quantization is None else quantizer_of_checkpoint(self.quantization)

    def tensors(self, dtype: torch.dtype = torch.float32) -> Tensors:
        """The tensors under Hugging Face's names, as if all layers were dense.

        Args:
            dtype: Of weights that are stored quantized.

        Raises:
            UnsupportedError: It is quantized by a method that is not read.
            CheckpointError: Its quantized layers are damaged.
        """
        reader: Tensors = self.stored
        if self.quantization is not None:
            reader = DenseView(reader, self.dequantizer, self.layers, dtype)
        return View(reader, [rule.inverse() for rule in self.rules]) if self.rules else reader

    @property
    def home(self) -> Path:
        """Where tokenizer and other companions lie: lit-llama keeps them a folder above the weights."""
        directory = self.checkpoint.directory
        if self.layout.name == "lit-llama" and not (directory / "tokenizer.model").is_file():
            return directory.parent
        return directory

    @property
    def descriptions(self) -> tuple[Path, ...]:
        """The file that says what the model is, if there is one."""
        return () if self.description is None else (self.description,)


def contradictions(one: ModelConfig, other: ModelConfig) -> list[str]:
    """What two descriptions say differently of what a model computes, one fact each; empty if nothing."""
    pairs = ((fact, getattr(one, fact), getattr(other, fact)) for fact in _FACTS)
    return [f"{fact} is {mine!r}, not {theirs!r}" for fact, mine, theirs in pairs if mine != theirs]
