"""params.json, written and read: as the releases have it, back and forth, and held against the tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaconv.config import ModelConfig, parse_config
from llamaconv.errors import ConfigError
from llamaconv.layouts import meta_llama
from llamaconv.layouts.description import Described, Given, Native
from llamaconv.layouts.meta_mlp import mlp_factors, mlp_width
from llamaconv.layouts.meta_params import described, obstacles, params_of
from tests.layouts.meta import PATH, SCALING, comparable, llama, scaled, specs_of, tiny

RELEASES: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "Llama 1 7B": (
        llama(4096, 11008, 32, 32, 32, 32000, rms_norm_eps=1e-6, max_position_embeddings=2048),
        {
            "dim": 4096,
            "multiple_of": 256,
            "n_heads": 32,
            "n_layers": 32,
            "norm_eps": 1e-6,
            "vocab_size": 32000,
        },
    ),
    "Llama 1 65B": (
        llama(8192, 22016, 80, 64, 64, 32000, max_position_embeddings=2048),
        {
            "dim": 8192,
            "multiple_of": 256,
            "n_heads": 64,
            "n_layers": 80,
            "norm_eps": 1e-5,
            "vocab_size": 32000,
        },
    ),
    "Llama 2 70B": (
        llama(8192, 28672, 80, 64, 8, 32000),
        {
            "dim": 8192,
            "multiple_of": 4096,
            "ffn_dim_multiplier": 1.3,
            "n_heads": 64,
            "n_kv_heads": 8,
            "n_layers": 80,
            "norm_eps": 1e-5,
            "vocab_size": 32000,
        },
    ),
    "Code Llama 34B": (
        llama(8192, 22016, 48, 64, 8, 32000, rope_theta=1e6, max_position_embeddings=16384),
        {
            "dim": 8192,
            "multiple_of": 256,
            "n_heads": 64,
            "n_kv_heads": 8,
            "n_layers": 48,
            "norm_eps": 1e-5,
            "rope_theta": 1e6,
            "vocab_size": 32000,
        },
    ),
    "Llama 3 8B": (
        llama(4096, 14336, 32, 32, 8, 128256, rope_theta=500000.0, max_position_embeddings=8192),
        {
            "dim": 4096,
            "multiple_of": 1024,
            "ffn_dim_multiplier": 1.3,
            "n_heads": 32,
            "n_kv_heads": 8,
            "n_layers": 32,
            "norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "vocab_size": 128256,
        },
    ),
    "Llama 3.1 405B": (
        llama(16384, 53248, 126, 128, 8, 128256, **scaled(8.0)),
        {
            "dim": 16384,
            "multiple_of": 4096,
            "ffn_dim_multiplier": 1.2,
            "n_heads": 128,
            "n_kv_heads": 8,
            "n_layers": 126,
            "norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "use_scaled_rope": True,
            "vocab_size": 128256,
        },
    ),
    "Llama 3.2 1B": (
        llama(2048, 8192, 16, 32, 8, 128256, **scaled(32.0), tie_word_embeddings=True),
        {
            "dim": 2048,
            "multiple_of": 256,
            "ffn_dim_multiplier": 1.5,
            "n_heads": 32,
            "n_kv_heads": 8,
            "n_layers": 16,
            "norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "use_scaled_rope": True,
            "vocab_size": 128256,
        },
    ),
}


def read_back(model: ModelConfig, fields: dict[str, Any] | None = None, given: Given | None = None) -> Described:
    stored = json.loads(json.dumps(params_of(model) if fields is None else fields))
    return described(Native(PATH, stored, specs_of(model), given=given or Given(tied=model.tied)))


@pytest.mark.parametrize("name", RELEASES)
def test_releases_are_written_as_meta_wrote_them(name: str) -> None:
    """Key by key, but that the vocabulary's size is said; read back, they are what they were, notes aside."""
    released, expected = RELEASES[name]
    assert obstacles(released) == []
    assert params_of(released) == expected
    told = read_back(released)
    assert comparable(parse_config(json.dumps(told.raw).encode())) == comparable(released)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    """Whatever has no obstacle: any width of the MLP, any base, either factor."""
    kv_heads, group, half = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    scaling = draw(st.sampled_from([{}, scaled(8.0), scaled(32.0)]))
    vocabulary = draw(st.integers(3, 300) | st.integers(127_990, 128_300))
    drawn = llama(
        hidden=kv_heads * group * half * 2, intermediate=draw(st.integers(1, 4000)), layers=draw(st.integers(1, 3)),
        heads=kv_heads * group, kv_heads=kv_heads, vocabulary=vocabulary,
        **{"rope_theta": draw(st.sampled_from([10000.0, 12345.678, 1e6])), **scaling,
           "max_position_embeddings": draw(st.integers(1, 10**6))},
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6, 3.7e-6])),
        tie_word_embeddings=draw(st.booleans()), torch_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
    )  # fmt: skip
    assert obstacles(drawn) == []
    return drawn


@given(models())
def test_what_is_written_is_read_back(drawn: ModelConfig) -> None:
    """Everything but the longest sequence and the tie, which the caller states; and no other fact is a guess."""
    fields = json.loads(json.dumps(params_of(drawn)))
    specs = {name: replace(spec, dtype=drawn.dtype) for name, spec in specs_of(drawn).items()}
    told = described(Native(PATH, fields, specs, given=Given(max_positions=drawn.max_positions, tied=drawn.tied)))
    assert comparable(parse_config(json.dumps(told.raw).encode())) == comparable(drawn)
    guessed = [note for note in told.notes if "--" in note and "the factor" not in note and "rope_theta" not in note]
    assert guessed == []


@given(st.integers(1, 10**15) | st.integers(1, 9000), st.integers(1, 10**15) | st.integers(1, 40000))
@settings(max_examples=300)
def test_every_width_has_factors_that_make_it(hidden: int, width: int) -> None:
    """By Meta's formula, computed here from its definition, and after a round trip through JSON."""
    multiple_of, multiplier = json.loads(json.dumps(mlp_factors(hidden, width)))
    two_thirds = int(2 * (4 * hidden) / 3)
    scaled_width = two_thirds if multiplier is None else int(multiplier * two_thirds)
    assert multiple_of * ((scaled_width + multiple_of - 1) // multiple_of) == width
    assert mlp_width(hidden, multiple_of, multiplier) == width


@pytest.mark.parametrize(("ranks", "embedding"), [(2, "columns"), (2, "rows"), (4, "columns"), (4, "rows")])
def test_ranks_are_added_up(ranks: int, embedding: meta_llama.Axis) -> None:
    """The sizes of rank 0 are a part of the model's, however the embedding is split."""
    whole = llama(64, 160, 3, 8, 4, 112, rope_theta=25000.0)
    specs = specs_of(whole, ranks, embedding)
    fields = {key: value for key, value in params_of(whole).items() if key not in ("vocab_size", "n_kv_heads")}
    told = described(Native(PATH, fields | {"vocab_size": -1}, specs, ranks, Given(max_positions=4096, tied=False)))
    assert comparable(parse_config(json.dumps(told.raw).encode())) == comparable(whole)
    with pytest.raises(ConfigError) as caught:
        described(Native(PATH, fields | {"dim": 80, "vocab_size": 111}, specs, ranks))
    shape = list(specs["tok_embeddings.weight"].shape)
    assert f"dim is 80, but tok_embeddings.weight is {shape} in each of {ranks} files." in str(caught.value)
    assert f"vocab_size is 111, but tok_embeddings.weight is {shape} in each of {ranks} files." in str(caught.value)


def test_what_releases_leave_out_is_noted() -> None:
    """Each fact with its value, where it is from, and the option that states another."""
    released = RELEASES["Llama 3.2 1B"][0]
    told = read_back(released)
    assert told.notes == (
        "the tokens of begin and end are 128000 and 128001, as Llama 3.2's base models have them",
        "the longest sequence is 131072, as Llama 3.2 has it; --max-positions states another",
        "the factor of the rope scaling is 32.0, as Llama 3.2 has it; --rope-factor states another",
    )
    told = tiny({"norm_eps": ..., "vocab_size": ..., "tokenizer": "x"})
    assert told.notes == (
        "the tokens of begin and end are 1 and 2, as Llama 2's base models have them",
        "the longest sequence is 4096, as Llama 2 has it; --max-positions states another",
        "norm_eps is 1e-05, as Meta's code takes it; --norm-eps states another",
        "rope_theta is 10000.0, as Llama 2 has it; --rope-theta states another",
        'keys of params.json that mean nothing here are passed over: "tokenizer"',
    )


def test_what_is_stated_is_no_guess() -> None:
    """The user's facts go into config.json, and nothing is noted of them."""
    stated = Given(rope_theta=25000.0, rope_factor=16.0, max_positions=77, norm_eps=3e-6, tied=True)
    told = tiny({"norm_eps": ..., "use_scaled_rope": True}, stated)
    assert [told.raw[key] for key in ("max_position_embeddings", "rms_norm_eps", "rope_theta")] == [77, 3e-6, 25000.0]
    assert told.raw["rope_scaling"] == SCALING | {"factor": 16.0}
    assert told.raw["tie_word_embeddings"] is True
    assert told.notes == ("the tokens of begin and end are 1 and 2, as Llama 3.2's base models have them",)


def test_transformers_reads_the_description(tmp_path: Path) -> None:
    """Rotary base and scaling, dtype, tie and sizes, from what stands under "model"; 4.57's keys are there as well."""
    from transformers import AutoConfig

    released = RELEASES["Llama 3.2 1B"][0]
    told = read_back(released, {"model": params_of(released), "job": "x"})
    (tmp_path / "config.json").write_text(json.dumps(told.raw))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "LlamaConfig"
    assert theirs.rope_parameters == SCALING | {"rope_theta": 500000.0, "factor": 32.0}
    assert (theirs.dtype, theirs.tie_word_embeddings, theirs.head_dim) == (torch.bfloat16, True, 64)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.hidden_act) == (128000, 128001, "silu")
    assert told.raw["rope_scaling"] == SCALING | {"factor": 32.0}
    assert (told.raw["rope_theta"], told.raw["torch_dtype"]) == (500000.0, "bfloat16")
