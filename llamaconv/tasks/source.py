"""A checkpoint in whatever layout, as Hugging Face would name its tensors and describe it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig
from llamaconv.errors import UnsupportedError
from llamaconv.layouts.quantized import QuantizedLayer
from llamaconv.layouts.rules import Layout, Rule
from llamaconv.layouts.sliding_window import sliding_window
from llamaconv.layouts.view import Tensors, View
from llamaconv.model.dense_view import DenseView
from llamaconv.quantizers.base import Dequantizer
from llamaconv.quantizers.modes import quantizer_of_checkpoint
from llamaconv.sources.open import Checkpoint

__all__ = ["Source", "contradictions"]

# What computes the model, with the scaling of the rotary frequencies, the activation and the sliding window. The rest
# of a config.json is habit, or the tokenizer's.
_FACTS = (
    *("model_type", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim", "vocab_size"),
    *("tied", "rope_theta", "norm_eps", "experts", "experts_per_token"),
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
        beside: What is there besides and says the same: litgpt's config.json, or quantize_config.json; None if nothing.
    """

    checkpoint: Checkpoint
    layout: Layout
    config: ModelConfig
    rules: tuple[Rule, ...]
    layers: tuple[QuantizedLayer, ...]
    description: Path | None
    notes: tuple[str, ...] = ()
    quantization: Mapping[str, Any] | None = None
    beside: Path | None = None

    @property
    def stored(self) -> Tensors:
        """The tensors as they are in the files, under the layout's names."""
        return self.checkpoint.reader

    @property
    def dequantizer(self) -> Dequantizer | None:
        """What reads its quantized layers, None if it is dense.

        Raises:
            UnsupportedError: It is quantized by a method that is not read, or to several widths of codes.
        """
        if self.quantization is None:
            return None
        found = quantizer_of_checkpoint(self.quantization)
        widths = {layer.bits for layer in self.layers if layer.bits is not None} - {found.bits}
        if widths and self.quantization.get("dynamic"):
            raise UnsupportedError(
                f"{self.checkpoint.directory}: layers with codes of {', '.join(map(str, sorted(widths)))} bits beside "
                f"others of {found.bits} cannot be read",
                hint="As it is, it can be copied within Hugging Face's layout.",
            )
        return found

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
        tokenizers = [*self.layout.tokenizers, "tokenizer.json"]
        above = self.layout.name == "lit-llama" and not any((directory / name).is_file() for name in tokenizers)
        return directory.parent if above else directory

    @property
    def descriptions(self) -> tuple[Path, ...]:
        """The files that say what the model is, as many as there are."""
        return tuple(path for path in (self.description, self.beside) if path is not None)


def contradictions(one: ModelConfig, other: ModelConfig, unsaid: Collection[str] = ()) -> list[str]:
    """What two descriptions say differently of what a model computes, one fact each; empty if nothing.

    Args:
        one, other: The descriptions.
        unsaid: Facts that are not compared.
    """
    faults = _unequal(_facts(one, unsaid), _facts(other, unsaid))
    # A window takes memory for each layer: claims of their number are compared before.
    return faults or _unequal(_window(one), _window(other))


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [f"{fact} is {mine!r}, not {other[fact]!r}" for fact, mine in one.items() if mine != other[fact]]


def _facts(config: ModelConfig, unsaid: Collection[str]) -> dict[str, Any]:
    """Each said in one way."""
    facts = {fact: getattr(config, fact) for fact in _FACTS if fact not in unsaid}
    scaling, activation = dict(config.rope_scaling or {}), config.raw.get("hidden_act", "silu")
    if scaling.get("partial_rotary_factor") == 1:
        del scaling["partial_rotary_factor"]  # whole heads turn anyway
    if scaling.get("rope_type") == "linear" and scaling.get("factor") == 1:
        scaling = {}
    return facts | {"rope_scaling": scaling or None, "hidden_act": "silu" if activation == "swish" else activation}


def _window(config: ModelConfig) -> dict[str, Any]:
    window = sliding_window(config)
    if window is None:
        return {"sliding_window": None, "layers with a sliding window": []}
    layers = [layer for layer, slides in enumerate(window.layers) if slides]
    return {"sliding_window": window.size, "layers with a sliding window": layers}
