"""config.json: what is read from it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.config import ModelConfig, parse_config, read_config
from llamaconv.errors import ConfigError, UnsupportedError
from llamaconv.layouts.hugging_face import FAMILIES
from tests.configs import TINY, config, raw_config, write_config


def _faults(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    return str(caught.value).splitlines()


def test_all_dimensions_are_read(tmp_path: Path) -> None:
    """Every attribute comes from its key, and the file's bytes are kept."""
    path = write_config(tmp_path, architectures=["LlamaForCausalLM"], attention_bias=True)
    raw = raw_config(architectures=["LlamaForCausalLM"], attention_bias=True)
    assert read_config(tmp_path) == ModelConfig(
        raw=raw,
        model_type="llama",
        architectures=("LlamaForCausalLM",),
        hidden_size=48,
        intermediate_size=80,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=16,
        vocab_size=112,
        max_positions=256,
        tied=False,
        rope_theta=25000.0,
        rope_scaling=None,
        norm_eps=1e-5,
        experts=None,
        experts_per_token=None,
        attention_bias=True,
        mlp_bias=False,
        dtype=torch.bfloat16,
        quantization=None,
        source=path.read_bytes(),
    )


def test_raw_keeps_the_order_of_keys() -> None:
    """A writer that patches ``raw`` leaves the rest of the file in its order."""
    keys = [*reversed(TINY)]
    assert list(parse_config(json.dumps({key: TINY[key] for key in keys}).encode()).raw) == keys


def test_missing_config_is_named(tmp_path: Path) -> None:
    """A folder without config.json is refused by the file's name."""
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'config.json'} does not exist."


def test_missing_keys_are_listed_together() -> None:
    """All missing keys are in one error."""
    assert _faults(hidden_size=..., vocab_size=..., num_hidden_layers=...) == [
        "config.json: hidden_size is missing.",
        "config.json: num_hidden_layers is missing.",
        "config.json: vocab_size is missing.",
    ]


def test_nested_text_configs_are_named_as_the_reason() -> None:
    """Where the keys are missing because they are nested, the hint says so."""
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps({"model_type": "llava", "text_config": TINY}).encode())
    assert caught.value.hint == "A model whose language part is described in text_config cannot be read."


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-3, "-3: input should be greater than 0"),
        (0, "0: input should be greater than 0"),
        (True, "true: input should be a valid integer"),
        ("48", '"48": input should be a valid integer'),
        (48.0, "48.0: input should be a valid integer"),
        ([], "[]: input should be a valid integer"),
        (10**16, "10000000000000000: input should be less than or equal to 1000000000000000"),
    ],
)
def test_absurd_sizes_are_refused(key: str, value: object, expected: str) -> None:
    """A size is a positive integer, and nothing that Python takes for one."""
    assert _faults(**{key: value}) == [f"config.json: {key} is {expected}."]


def test_many_layers_are_left_to_the_comparison_with_the_tensors() -> None:
    """10**12 layers are an integer like another: parsing them takes no time and no memory."""
    assert config(num_hidden_layers=10**12).layers == 10**12


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        (
            {"num_attention_heads": 7, "num_key_value_heads": 3},
            ["num_attention_heads is 7, not a multiple of num_key_value_heads, 3"],
        ),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": ...},
            ["head_dim is missing, and hidden_size, 48, is not a multiple of num_attention_heads, 7"],
        ),
        ({"head_dim": 15}, ["head_dim is 15, but rotary embeddings turn pairs"]),
        (
            {"num_key_value_heads": 4, "head_dim": 15, "rope_parameters": {"rope_theta": 1.5}},
            [
                "rope_parameters.rope_theta is 1.5, but rope_theta is 25000.0",
                "num_attention_heads is 6, not a multiple of num_key_value_heads, 4",
                "head_dim is 15, but rotary embeddings turn pairs",
            ],
        ),
        ({"model_type": ""}, ['model_type is "": string should have at least 1 character']),
        ({"rope_theta": 0}, ["rope_theta is 0: input should be greater than 0"]),
        (
            {"rope_theta": ..., "rope_parameters": {"rope_theta": "1e4"}},
            ['rope_theta is "1e4": input should be a valid number'],
        ),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings is 1: input should be a valid boolean"]),
        (
            {"torch_dtype": "int8"},
            ["torch_dtype is \"int8\": input should be 'bfloat16', 'float16', 'float32' or 'float64'"],
        ),
        (
            {"model_type": "mixtral", "num_local_experts": None, "num_experts_per_tok": 0},
            [
                "num_local_experts is null: input should be a valid integer",
                "num_experts_per_tok is 0: input should be greater than 0",
            ],
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 1, "head_dim": 15},
            [
                "head_dim is 15, but rotary embeddings turn pairs",
                "num_experts_per_tok is 2, more than num_local_experts, 1",
            ],
        ),
        ({"quantization_config": "gptq"}, ['quantization_config is "gptq": input should be a valid dictionary']),
    ],
)
def test_values_that_cannot_be_are_named(changes: dict[str, Any], faults: list[str]) -> None:
    """What contradicts itself or has the wrong type is named with its value, all in one error."""
    assert _faults(**changes) == [f"config.json: {fault}." for fault in faults]


def test_remote_code_is_refused_by_name() -> None:
    """auto_map names code that would have to be run: the error says which."""
    with pytest.raises(UnsupportedError) as caught:
        config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert str(caught.value) == (
        'config.json: auto_map is {"AutoModelForCausalLM": "modeling_evil.Evil"}: remote code is never run.'
    )
    assert config(auto_map={}).layers == 3


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"dtype": "float16", "torch_dtype": ...}, torch.float16),
        ({"dtype": "float32", "torch_dtype": "float16"}, torch.float32),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"torch_dtype": None}, None),
        ({"torch_dtype": ...}, None),
    ],
)
def test_both_names_of_the_dtype_are_read(changes: dict[str, Any], dtype: torch.dtype | None) -> None:
    """``dtype`` goes before ``torch_dtype``, as in transformers 5."""
    assert config(**changes).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "experts"),
    [
        ({"model_type": "mixtral"}, (8, 2)),
        ({"model_type": "mixtral", "num_local_experts": 10**9, "num_experts_per_tok": 3}, (10**9, 3)),
        ({"num_local_experts": 4, "num_experts_per_tok": "two"}, (None, None)),
        ({"model_type": "granitemoehybrid", "num_local_experts": 0}, (None, None)),
    ],
)
def test_experts_are_read_of_known_mixtures(changes: dict[str, Any], experts: tuple[int | None, int | None]) -> None:
    """With transformers' defaults; in other families the keys mean nothing to us, or something else."""
    parsed = config(**changes)
    assert (parsed.experts, parsed.experts_per_token) == experts


def test_unknown_model_types_are_read_by_the_common_keys() -> None:
    """An architecture without a table of ours has its dimensions all the same; its head is tied by default."""
    parsed = config(model_type="starcoder2", head_dim=..., num_key_value_heads=..., tie_word_embeddings=...)
    assert (parsed.model_type, parsed.head_dim, parsed.kv_heads, parsed.tied) == ("starcoder2", 8, 6, True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False, ...])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_attention_heads": 32, "num_key_value_heads": ..., "head_dim": ..., "hidden_size": 64},
        {"rope_theta": ..., "rms_norm_eps": ..., "max_position_embeddings": ...},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"torch_dtype": "float16", "dtype": "bfloat16"},
    ],
)
def test_transformers_reads_the_same(family: str, tied: object, changes: dict[str, Any]) -> None:
    """For each family transformers takes the same dimensions, defaults, rope and dtype from the same file."""
    from transformers import AutoConfig

    if family not in ("mistral", "mixtral"):  # which refuse null
        changes = {"num_key_value_heads": None} | changes
    raw = raw_config(model_type=family, tie_word_embeddings=tied, **changes)
    ours, theirs = parse_config(json.dumps(raw).encode()), AutoConfig.for_model(**raw)
    theirs_head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    rope = {"rope_type": "default"} | dict(ours.rope_scaling or {}) | {"rope_theta": ours.rope_theta}
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs_head_dim
    assert ours.tied == theirs.tie_word_embeddings
    assert ours.dtype == theirs.dtype
    assert (ours.norm_eps, ours.max_positions) == (theirs.rms_norm_eps, theirs.max_position_embeddings)
    names = ("num_local_experts", "num_experts_per_tok")
    assert (ours.experts, ours.experts_per_token) == tuple(getattr(theirs, name, None) for name in names)
    assert rope == {key: value for key, value in theirs.rope_parameters.items() if key != "type"}


@pytest.mark.parametrize("family", FAMILIES)
def test_files_that_transformers_writes_are_read(family: str, tmp_path: Path) -> None:
    """What transformers saves is read back with the same dimensions."""
    from transformers import AutoConfig

    AutoConfig.for_model(**raw_config(model_type=family, rope_theta=12345.0)).save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    assert (ours.layers, ours.heads, ours.kv_heads, ours.head_dim) == (3, 6, 2, 16)
    assert (ours.rope_theta, ours.norm_eps, ours.dtype) == (12345.0, 1e-5, torch.bfloat16)


@given(
    st.sampled_from([*TINY, "architectures", "rope_parameters", "rope_scaling", "quantization_config"]),
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "llama", [], {}, [1], {"rope_theta": []}, {"type": {"rope_theta": 2}}]),
)
def test_whatever_one_key_holds_the_sizes_are_positive_or_the_file_is_refused(key: str, value: object) -> None:
    """No value of any key gets past as a size that cannot be, or ends in another error."""
    try:
        parsed = config(**{key: value})
    except ConfigError:
        return
    assert min(parsed.layers, parsed.heads, parsed.kv_heads, parsed.head_dim, parsed.hidden_size) > 0
    assert min(parsed.intermediate_size, parsed.vocab_size, parsed.rope_theta or 1) > 0
