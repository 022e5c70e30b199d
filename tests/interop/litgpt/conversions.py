"""Tiny models in Hugging Face's layout, and what our convert task makes of them for litgpt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor

from llamaconv.tasks.convert import ConvertSettings, convert
from tests.models import random_tokens, reference, reference_logits, write_model

__all__ = ["CASES", "LENGTH", "Case", "Conversion", "Workshop", "difference", "litgpt_logits", "stored"]

LENGTH = 1200
"""Positions beyond 1,000 are where a wrong rotary embedding shows."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Case:
    """A tiny model.

    Attributes:
        name: Of the test.
        family: As ``write_model`` takes it.
        config: Changes to its config.
        theirs: Whether litgpt's own converters take such a model.
    """

    name: str
    family: str = "llama"
    config: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    theirs: bool = True

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("Llama 2", config={"num_key_value_heads": 6, "rope_theta": 10000.0}),
    Case("Llama 3.1", config={"rope_parameters": _LLAMA_3_SCALING, "rope_theta": 500000.0}),
    Case(
        "Llama 3.2",
        config={"rope_parameters": _LLAMA_3_SCALING, "rope_theta": 500000.0, "tie_word_embeddings": True},
    ),
    Case("Code Llama", config={"rope_theta": 1000000.0, "rms_norm_eps": 3e-4}),
    Case("linear scaling", config={"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 25000.0}}),
    Case("biases", config={"attention_bias": True, "mlp_bias": True}, theirs=False),
    Case("Mistral", "mistral"),
    Case("Mistral without a window", "mistral", {"sliding_window": None}),
    Case("Mixtral", "mixtral"),
    Case("Qwen2", "qwen2"),
    Case(
        "Qwen2 with windows",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    Case("Qwen3", "qwen3", {"attention_bias": False}),
)


@dataclass(frozen=True)
class Conversion:
    """A model and what came of it.

    Attributes:
        hub: In Hugging Face's layout, float32.
        litgpt: In litgpt's.
        tokens: [L].
        logits: [L, V] of transformers' model.
    """

    hub: Path
    litgpt: Path
    tokens: Tensor
    logits: Tensor


class Workshop:
    """Makes each conversion once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, Conversion] = {}

    def make(self, case: Case) -> Conversion:
        """The conversion of a case; its files are not to be written to."""
        if case.name not in self._made:
            hub, litgpt = self._directory / case.name / "hub", self._directory / case.name / "litgpt"
            write_model(hub, case.family, **{"max_position_embeddings": 2048} | dict(case.config))
            convert(hub, litgpt, ConvertSettings(to="litgpt"))
            (tokens,) = random_tokens(1, LENGTH)
            self._made[case.name] = Conversion(hub, litgpt, tokens, reference_logits(reference(hub), tokens))
        return self._made[case.name]


def stored(directory: Path) -> dict[str, Tensor]:
    """What ``lit_model.pth`` holds."""
    tensors: dict[str, Tensor] = torch.load(directory / "lit_model.pth", weights_only=True, mmap=True)
    return tensors


def litgpt_logits(directory: Path, tokens: Tensor) -> Tensor:
    """[L, V] of litgpt's own model, which every tensor must fit."""
    model = GPT(Config.from_file(directory / "model_config.yaml")).eval()
    model.load_state_dict(stored(directory), strict=True)
    with torch.inference_mode():
        logits: Tensor = model(tokens.long()[None])[0]
    return logits


def difference(logits: Tensor, wanted: Tensor) -> float:
    """The largest, over the largest logit."""
    return float((logits - wanted).abs().max() / wanted.abs().max())
