"""What the rules make of a model computes the same where its new owner computes, far from the beginning too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from llamaconv.config import read_config
from llamaconv.layouts import lit_llama, meta_llama
from llamaconv.layouts.attention import Rotary
from llamaconv.layouts.meta_params import params_of
from llamaconv.layouts.operations import Chain, Identity, Operation, Parallel
from llamaconv.layouts.rules import Rule
from tests.conftest import Checkpoint
from tests.layouts.native import lit_llama_logits, meta_logits
from tests.models import load_weights, random_tokens, reference, reference_logits

LONG = slice(1000, 1500)
MODELS: dict[str, dict[str, Any]] = {
    # As wide as lit-llama computes it for a width of 96; the vocabulary needs padding.
    "Llama 1": {"num_key_value_heads": 6, "head_dim": ..., "intermediate_size": 256, "rope_theta": 10000.0},
    "Llama 2": {"head_dim": ..., "rope_theta": 10000.0},
    "Code Llama": {"head_dim": ..., "rope_theta": 1000000.0},
    "Llama 3.1": {
        "head_dim": ...,
        "rope_theta": 500000.0,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Path:
    return checkpoint(max_position_embeddings=16384, vocab_size=290, **MODELS[request.param])


def tokens() -> Tensor:
    return random_tokens(1, LONG.stop, vocab=290)[0]


def run(rules: Iterable[Rule], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the hub to the layout."""
    made: dict[str, Tensor] = {}
    for rule in rules:
        made.update(zip(rule.local, rule.operation.apply(tuple(tensors[name] for name in rule.hub)), strict=True))
    return made


def without_rotary(operation: Operation) -> Operation:
    """The operation, but that a head's rows keep their order."""
    match operation:
        case Rotary():
            return Identity()
        case Chain(steps):
            return Chain(tuple(map(without_rotary, steps)))
        case Parallel(parts):
            return Parallel(tuple(map(without_rotary, parts)))
    return operation


def far_off(logits: Tensor, directory: Path) -> float:
    """The largest difference from transformers' logits at late positions, in terms of their largest."""
    expected = reference_logits(reference(directory), tokens())[LONG]
    return float((logits[LONG] - expected).abs().max() / expected.abs().max())


def test_metas_code_computes_the_same(model: Path) -> None:
    """With params.json as it is written; not if the rows of queries and keys keep Hugging Face's order."""
    config = read_config(model)
    rules, hub = meta_llama.LAYOUT.rules(config), load_weights(model)
    params = params_of(config)
    assert far_off(meta_logits(run(rules, hub), params, tokens()), model) < 1e-4
    wrong = [replace(rule, operation=without_rotary(rule.operation)) for rule in rules]
    assert far_off(meta_logits(run(wrong, hub), params, tokens()), model) > 1e-2


@pytest.mark.parametrize("fact", [{"use_scaled_rope": False}, {"rope_theta": 510000.0}, {"norm_eps": 2e-5}])
def test_what_params_json_says_shows(checkpoint: Checkpoint, fact: dict[str, object]) -> None:
    """The judge tells a wrong scaling, base or epsilon from the right one."""
    model = checkpoint(max_position_embeddings=16384, vocab_size=290, **MODELS["Llama 3.1"])
    config = read_config(model)
    tensors = run(meta_llama.LAYOUT.rules(config), load_weights(model))
    assert far_off(meta_logits(tensors, params_of(config) | fact, tokens()), model) > 1e-4


def test_lit_llama_computes_the_same(checkpoint: Checkpoint) -> None:
    """Of Llama 1, with nothing but zeros for the padding; not if the rows keep Hugging Face's order."""
    model = checkpoint(max_position_embeddings=16384, vocab_size=290, **MODELS["Llama 1"])
    rules, hub = lit_llama.LAYOUT.rules(read_config(model)), load_weights(model)
    logits = lit_llama_logits(run(rules, hub), 6, tokens())
    assert logits.shape[1] == 320
    assert not logits[:, 290:].any()
    assert far_off(logits[:, :290], model) < 1e-4
    wrong = [replace(rule, operation=without_rotary(rule.operation)) for rule in rules]
    assert far_off(lit_llama_logits(run(wrong, hub), 6, tokens())[:, :290], model) > 1e-2
