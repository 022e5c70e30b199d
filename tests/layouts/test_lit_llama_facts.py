"""What lit-llama takes for granted, and what a file of its weights says of a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.config import ModelConfig, parse_config
from llamaconv.errors import CheckpointError, ConfigError, UsageError
from llamaconv.layouts import lit_llama
from llamaconv.layouts.description import Described, Given, Native
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.lit_llama_facts import described, padded, size_of, stock_obstacles, warnings_of
from llamaconv.layouts.meta_mlp import mlp_width
from llamaconv.layouts.rules import local_specs
from llamaconv.tensors import TensorSpec
from tests.layouts.meta import comparable, llama

PATH = Path("lit-llama.pth")
SIZES = {"7B": (4096, 32, 32), "13B": (5120, 40, 40), "30B": (6656, 60, 52), "65B": (8192, 80, 64)}


def model(width: int, layers: int, heads: int, vocabulary: int, **more: Any) -> ModelConfig:
    """A model that lit-llama can hold."""
    return llama(
        width, mlp_width(width, 256), layers, heads, heads, vocabulary, **{"max_position_embeddings": 2048, **more}
    )


def specs_of(model: ModelConfig) -> dict[str, TensorSpec]:
    hub = {name: TensorSpec(name, shape, torch.bfloat16) for name, shape in (expected_tensors(model) or {}).items()}
    return local_specs(lit_llama.LAYOUT.rules(model), hub)


def quantized(specs: dict[str, TensorSpec], bits: int) -> dict[str, TensorSpec]:
    """All linear layers as lit-llama quantizes them: codes in bytes, one group per row."""
    stored = {}
    for name, spec in specs.items():
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or layer == "transformer.wte":
            stored[name] = spec
            continue
        rows, columns = spec.shape
        codes = TensorSpec(f"{layer}.quant_weight", (rows, columns * bits // 8), torch.uint8)
        grids = (TensorSpec(f"{layer}.{part}", (rows, 1), torch.float32) for part in ("scales", "zeros"))
        stored |= {part.name: part for part in (codes, *grids)}
    return stored


def tell(specs: dict[str, TensorSpec], **facts: Any) -> Described:
    return described(Native(PATH, {}, specs, given=Given(**facts)))


def parsed(told: Described) -> ModelConfig:
    return parse_config(json.dumps(told.raw).encode())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_stock_models_are_looked_up(size: str, bits: int) -> None:
    """Layers counted, heads looked up by the width, the rest off the tensors, dense or quantized."""
    stock = model(*SIZES[size], 32000)
    assert (size_of(stock), stock_obstacles(stock), warnings_of(stock)) == (size, [], [])
    told = tell(specs_of(stock) if bits == 16 else quantized(specs_of(stock), bits))
    assert comparable(parsed(told)) == comparable(stock)
    assert told.notes == (
        "the vocabulary is 32000, as all rows of the embedding say; --vocab-size states another",
        "the tokens of begin and end are 1 and 2, as Llama 1 has them",
        "the norms' epsilon is 1e-05, as lit-llama computes, though Llama 1 has 1e-06 up to 30B; "
        "--norm-eps states another",
        "the longest sequence is 2048, as lit-llama takes it; --max-positions states another",
    )


@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 300), st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_any_model_is_read_back_with_what_the_user_states(
    heads: int, half: int, layers: int, vocabulary: int, tied: bool, dtype: torch.dtype
) -> None:
    """Heads, vocabulary, epsilon, longest sequence and tie; then nothing is guessed but tokens."""
    drawn = model(
        2 * heads * half, layers, heads, vocabulary, rms_norm_eps=3e-6, max_position_embeddings=777,
        tie_word_embeddings=tied, torch_dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    specs = {name: replace(spec, dtype=dtype) for name, spec in specs_of(drawn).items()}
    told = tell(specs, heads=heads, vocab_size=vocabulary, norm_eps=3e-6, max_positions=777, tied=tied)
    assert comparable(parsed(told)) == comparable(drawn)
    assert told.notes == ("the tokens of begin and end are 1 and 2, as Llama 1 has them",)


def test_what_the_scripts_cannot_load() -> None:
    """Another width, depth or number of heads than the lookup builds, another number of padded rows."""
    assert size_of(model(64, 2, 4, 32000)) is None
    assert stock_obstacles(model(64, 2, 4, 32001)) == [
        "a width of 64; it knows 4096, 5120, 6656, 8192",
        "a vocabulary of 32001, padded to 32064 rows; it builds 32000",
    ]
    other = model(5120, 36, 32, 31936)
    assert size_of(other) == "13B"
    assert stock_obstacles(other) == [
        "36 layers; it builds 40 at a width of 5120",
        "32 heads; it builds 40 at a width of 5120",
        "a vocabulary of 31936, padded to 31936 rows; it builds 32000",
    ]


def test_what_it_computes_differently() -> None:
    """Its own epsilon, no sequences longer than its block size, logits for the padding."""
    differing = model(4096, 32, 32, 31990, rms_norm_eps=1e-6, max_position_embeddings=4096)
    assert stock_obstacles(differing) == []
    assert warnings_of(differing) == [
        "an epsilon of 1e-06 in the norms; it computes with 1e-05",
        "sequences of up to 4096; it takes up to 2048",
        "a vocabulary of 31990; its logits have 10 more, of padding, all 0",
    ]
    assert (padded(31990), padded(32000), padded(1)) == (32000, 32000, 64)


def test_a_depth_of_its_own_leaves_the_heads_a_guess() -> None:
    """Looked up by the width all the same, with a note; not if the user states them."""
    specs = specs_of(model(4096, 3, 32, 32000))
    assert "the number of heads is 32, as 7B has it; --heads states another" in tell(specs).notes
    told = tell(specs, heads=64)
    assert told.raw["num_attention_heads"] == told.raw["num_key_value_heads"] == 64
    assert not any("--heads" in note for note in told.notes)


def test_what_cannot_be_is_refused_all_at_once() -> None:
    """Heads that nobody knows, a vocabulary that other rows belong to, layers with gaps."""
    specs = specs_of(model(64, 2, 4, 70))
    gap = specs | {"transformer.h.3.rms_1.scale": TensorSpec("transformer.h.3.rms_1.scale", (64,), torch.float32)}
    with pytest.raises(ConfigError) as caught:
        tell(gap, vocab_size=60)
    assert str(caught.value).splitlines() == [
        'lit-llama.pth: the weights have 3 layers, but among their numbers there is "3" and not "2".',
        "lit-llama.pth: no file says how many heads share the width of 64: `convert --heads N` states it.",
        "lit-llama.pth: a vocabulary of 60 by --vocab-size is padded to 64 rows, not 128.",
    ]
    for heads in (-4, 0, 3, 64):
        with pytest.raises(ConfigError) as caught:
            tell(specs, heads=heads)
        assert str(caught.value) == (
            f"lit-llama.pth: {heads} heads, as --heads says, cannot share the width of 64 in pairs."
        )


def test_rows_that_are_not_padded_are_refused() -> None:
    """lit-llama's own code makes multiples of 64."""
    specs = specs_of(model(64, 2, 4, 70))
    specs["transformer.wte.weight"] = TensorSpec("transformer.wte.weight", (70, 64), torch.bfloat16)
    with pytest.raises(ConfigError) as caught:
        tell(specs, heads=4)
    assert str(caught.value) == "lit-llama.pth: a vocabulary of 70 is padded to 128 rows, not 70."


def test_rotary_facts_are_not_open() -> None:
    """lit-llama's code has them; stating the same is no fault."""
    specs = specs_of(model(64, 2, 4, 70))
    assert tell(specs, heads=4, rope_theta=10000.0).raw["rope_theta"] == 10000.0
    with pytest.raises(UsageError) as caught:
        tell(specs, heads=4, rope_theta=500000.0, rope_factor=8.0)
    assert str(caught.value).splitlines() == [
        "lit-llama.pth: --rope-theta says 500000.0, but there it is 10000.0.",
        "lit-llama.pth: --rope-factor says 8.0, but there it is 1.",
    ]


def test_weights_without_the_tensors_that_say_sizes() -> None:
    """The embedding and the first MLP."""
    with pytest.raises(CheckpointError) as caught:
        tell({"lm_head.weight": TensorSpec("lm_head.weight", (128, 64), torch.float32)})
    assert str(caught.value).splitlines() == [
        "lit-llama.pth: the weights lack transformer.wte.weight, from which the model's sizes are read.",
        "lit-llama.pth: the weights lack transformer.h.0.mlp.c_fc1.weight, from which the model's sizes are read.",
    ]
