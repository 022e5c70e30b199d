"""What other runtimes are asked to load: artifacts of our quantize task, and the logits they should give.

The logits are those of transformers' dense model in float32 with the weights that *our* code says the artifact
stands for: no quantized layer, and no code of the runtime under test, has a part in them.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from llamaconv.quantizers.modes import quantizer_of_checkpoint
from llamaconv.tasks.quantize import QuantizeSettings, quantize
from tests.models import (
    load_weights,
    random_tokens,
    reference,
    reference_logits,
    save_weights,
    write_model,
    write_tokenizer,
)

__all__ = ["BUNDLED", "Artifact", "Case", "Workshop", "kinds", "logits_of", "plainly", "relative_difference"]

BUNDLED = Path(__file__).parents[2] / "llamaconv" / "demo" / "model"

_NOTHING: Mapping[str, Any] = MappingProxyType({})
# Wide enough for groups of 128, and still no two dimensions equal.
_WIDE = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8}


@dataclass(frozen=True)
class Case:
    """An artifact to make, and which runtimes cannot take it.

    Attributes:
        name: Of the test.
        family: Of a tiny model; "bundled" is the trained model that comes with the package.
        mode, settings: As the quantize task takes them.
        config: Changes to the tiny model's config.
        refused: What the task says of the runtimes that it does not claim.
    """

    name: str
    family: str = "llama"
    mode: str = "gptq.int4"
    settings: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    config: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    refused: Mapping[str, str] = field(default_factory=lambda: _NOTHING)

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
        model: The dense model in float32, with the weights that the artifact stands for.
        tokens: [L] to try it on.
        logits: [L, V], the model's.
    """

    path: Path
    claims: Mapping[str, str]
    quantized: frozenset[str]
    dense: frozenset[str]
    model: PreTrainedModel
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
            self._made[case.name] = _make(self._directory / case.name, case)
        return self._made[case.name]


def _make(home: Path, case: Case) -> Artifact:
    source = BUNDLED if case.family == "bundled" else _tiny(home / "source", case)
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    home.mkdir(exist_ok=True)
    calibration = home / "calibration.safetensors"
    save_file({"tokens": torch.stack(random_tokens(8, 64, vocab=vocabulary))}, calibration)
    settings = QuantizeSettings(
        case.mode, calibration=str(calibration), samples=8, seq_len=64, threads=1, **case.settings
    )
    result = quantize(source, home / "quantized", settings)
    model = _dequantized(result.out, source)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = frozenset(layer.name for layer in result.layers)
    [tokens] = random_tokens(1, 96, seed=1, vocab=vocabulary)
    logits = reference_logits(model, tokens)
    return Artifact(result.out, result.runtimes, quantized, frozenset(linear - quantized), model, tokens, logits)


def _tiny(directory: Path, case: Case) -> Path:
    """A random model whose blocks add a part to the residual stream, as a trained one's do.

    Were each block to replace the stream, any runtime's rounding to 16 bits would grow from block to block.
    """
    write_tokenizer(write_model(directory, case.family, **(_WIDE | dict(case.config))))
    embedding = "model.embed_tokens.weight"
    return save_weights(directory, **{embedding: load_weights(directory)[embedding] * 10})


def _dequantized(artifact: Path, source: Path) -> PreTrainedModel:
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
    assert not set(missing) - set(model._tied_weights_keys or ())
    return model


@contextmanager
def plainly() -> Iterator[None]:
    """Runtimes run without a compiler, which would take longer than all the tests, and in memory full of NaN.

    Memory that a runtime does not write could hold the right weights by luck: those of the model before. The garbage
    that runtimes collect with each model is their own: going through all that was imported took half of the time.
    """
    gc.freeze()
    torch.use_deterministic_algorithms(True)  # with it comes torch.utils.deterministic.fill_uninitialized_memory
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        gc.unfreeze()


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """[L, V] for tokens [L]."""
    with torch.inference_mode():
        logits: Tensor = model(input_ids=tokens.long()[None]).logits[0]
    return logits


def kinds(model: nn.Module, names: Iterable[str]) -> set[type[nn.Module]]:
    """The types of the named modules."""
    return {type(model.get_submodule(name)) for name in names}


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Euclidean norm of the difference over that of what is expected; NaN where something is."""
    return float((found.float() - expected).norm() / expected.norm())
