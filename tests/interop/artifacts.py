"""What other runtimes are asked to load: artifacts of our quantize task, and the logits they should give.

The logits come from transformers' own model with the weights that *our* code says the artifact stands for, in
float32: no quantized layer, and no code of the runtime under test, has a part in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llamaconv.quantizers.modes import quantizer_of_checkpoint
from llamaconv.tasks.quantize import QuantizeSettings, quantize
from tests.models import load_weights, random_tokens, reference, reference_logits, save_weights, write_model, write_tokenizer

__all__ = ["BUNDLED", "Artifact", "Case", "Workshop", "kinds", "relative_difference"]

BUNDLED = Path(__file__).parents[2] / "llamaconv" / "demo" / "model"

_NOTHING: Mapping[str, Any] = MappingProxyType({})
# Wide enough for groups of 128, and still no two dimensions equal.
_WIDE = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8}


@dataclass(frozen=True)
class Case:
    """An artifact to make.

    Attributes:
        name: Of the test.
        family: Of a tiny model; "bundled" is the trained model that comes with the package.
        mode, settings: As the quantize task takes them.
        config: Changes to the tiny model's config.
    """

    name: str
    family: str = "llama"
    mode: str = "gptq.int4"
    settings: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    config: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Artifact:
    """What our task wrote.

    Attributes:
        path: The model directory.
        claims: What the task says of each runtime.
        quantized: Names of the quantized layers.
        dense: Names of the linear layers left dense.
        tokens: [L] to try it on.
        logits: [L, V] float32, of the dequantized model.
    """

    path: Path
    claims: Mapping[str, str]
    quantized: frozenset[str]
    dense: frozenset[str]
    tokens: Tensor
    logits: Tensor


class Workshop:
    """Makes artifacts, each once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, Artifact] = {}

    def make(self, case: Case) -> Artifact:
        """Quantize, and compute what the result should say."""
        if case.name not in self._made:
            self._made[case.name] = self._make(case)
        return self._made[case.name]

    def _make(self, case: Case) -> Artifact:
        home = self._directory / case.name
        home.mkdir()
        source = BUNDLED if case.family == "bundled" else _tiny(home / "source", case)
        vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
        calibration = home / "calibration.safetensors"
        save_file({"tokens": torch.stack(random_tokens(8, 64, vocab=vocabulary))}, calibration)
        out = home / "quantized"
        settings = QuantizeSettings(case.mode, calibration=str(calibration), samples=8, seq_len=64, threads=1, **case.settings)
        result = quantize(source, out, settings)
        [tokens] = random_tokens(1, 96, seed=1, vocab=vocabulary)
        model = dequantized(out, source)
        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        marked = frozenset(layer.rpartition(".")[0] for layer in load_weights(out) if layer.endswith((".qweight", ".SCB")))
        return Artifact(out, result.runtimes, marked, frozenset(linear - marked), tokens, reference_logits(model, tokens))


def _tiny(directory: Path, case: Case) -> Path:
    """A random model whose blocks add to the residual stream as those of a trained one do: a part of it.

    Were each block to replace it, rounding to 16 bits would grow from block to block, in every runtime.
    """
    write_model(directory, case.family, **(_WIDE | dict(case.config)))
    write_tokenizer(directory)
    outputs = {name: weight for name, weight in load_weights(directory).items() if name.endswith(("o_proj.weight", "down_proj.weight"))}
    return save_weights(directory, **{name: weight * 0.3 for name, weight in outputs.items()})


def dequantized(artifact: Path, source: Path) -> nn.Module:
    """The model in float32, with the weights that the artifact stands for."""
    stored = load_weights(artifact)
    quantizer = quantizer_of_checkpoint(json.loads((artifact / "config.json").read_text())["quantization_config"])
    weights = {}
    for name, tensor in stored.items():
        layer, _, leaf = name.rpartition(".")
        if f"{layer}.{quantizer.marker}" not in stored or leaf not in quantizer.suffixes:
            weights[name] = tensor.float()
        elif leaf == quantizer.marker:
            parts = {suffix: stored[f"{layer}.{suffix}"] for suffix in quantizer.suffixes}
            weights[f"{layer}.weight"] = quantizer.read(parts).dequantize()
    model = reference(source)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # where it is tied
    return model


def kinds(model: nn.Module, names: frozenset[str]) -> set[type[nn.Module]]:
    """The types of the named modules."""
    return {type(model.get_submodule(name)) for name in names}


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Euclidean norm of the difference over that of what is expected; NaN where something is."""
    return float((found.float() - expected).norm() / expected.norm())
