"""A checkpoint in whatever layout, as Hugging Face would name and describe it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaconv.errors import UnsupportedError
from llamaconv.layouts.description import Given
from llamaconv.quantizers.col_block import ColBlock
from llamaconv.tasks.open_source import open_source
from llamaconv.tasks.source import contradictions
from tests.configs import config
from tests.conftest import Checkpoint
from tests.dequantized import dequantize
from tests.layouts.meta import SCALING
from tests.models import load_weights, patch_config
from tests.tasks.conftest import Quantized
from tests.tasks.conversions import LLAMA_1, PACKED_STATED, WHOLE, lit_llama_dense, stored, to

MISTRAL: dict[str, Any] = {"model_type": "mistral", "sliding_window": 64}
QWEN: dict[str, Any] = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"max_position_embeddings": 99, "bos_token_id": 7, "torch_dtype": "float32", "architectures": ["A"]}),
        ({"head_dim": 8}, {"head_dim": ...}),
        ({"num_key_value_heads": 6}, {"num_key_value_heads": ...}),
        ({"hidden_act": "silu"}, {"hidden_act": "swish"}),
        ({"rope_scaling": SCALING}, {"rope_scaling": SCALING | {"partial_rotary_factor": 1.0}}),
        ({}, {"rope_scaling": {"rope_type": "linear", "factor": 1.0}}),
        ({"rope_scaling": {"rope_type": "default"}}, {"rope_scaling": None}),
        (
            {"rope_theta": 25000},
            {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0}},
        ),
        (MISTRAL, MISTRAL | {"max_window_layers": 2}),
        (QWEN, QWEN | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
        (QWEN | {"use_sliding_window": False}, {"model_type": "qwen2"}),
    ],
)
def test_what_computes_the_same_is_no_contradiction(one: dict[str, Any], other: dict[str, Any]) -> None:
    """In whatever words, and whatever else is said."""
    assert contradictions(config(**one), config(**other)) == []
    assert contradictions(config(**other), config(**one)) == []


@pytest.mark.parametrize(
    ("one", "other", "faults"),
    [
        ({}, {"hidden_size": 96, "rms_norm_eps": 1e-6}, ["hidden_size is 48, not 96", "norm_eps is 1e-05, not 1e-06"]),
        ({}, {"tie_word_embeddings": True}, ["tied is False, not True"]),
        ({}, {"rope_theta": 10000.0}, ["rope_theta is 25000.0, not 10000.0"]),
        ({"rope_scaling": SCALING}, {}, [f"rope_scaling is {SCALING!r}, not None"]),
        ({}, {"hidden_act": "gelu"}, ["hidden_act is 'silu', not 'gelu'"]),
        ({}, {"model_type": "qwen2"}, ["model_type is 'llama', not 'qwen2'"]),
        (MISTRAL, MISTRAL | {"sliding_window": 65}, ["sliding_window is 64, not 65"]),
        (QWEN, QWEN | {"max_window_layers": 2}, ["layers with a sliding window is [1, 2], not [2]"]),
        (
            MISTRAL,
            MISTRAL | {"sliding_window": None},
            ["sliding_window is 64, not None", "layers with a sliding window is [0, 1, 2], not []"],
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 4},
            {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 1},
            ["experts is 4, not 5", "experts_per_token is 2, not 1"],
        ),
    ],
)
def test_all_contradictions_are_told(one: dict[str, Any], other: dict[str, Any], faults: list[str]) -> None:
    """Each fact with both values."""
    assert contradictions(config(**one), config(**other)) == faults


def test_facts_that_nobody_says_are_left_out() -> None:
    """A layout for one family says neither which it was nor whether the head is tied."""
    one, other = config(), config(model_type="mistral", tie_word_embeddings=True, sliding_window=None)
    assert contradictions(one, other, unsaid=("model_type", "tied")) == []


def test_absurd_claims_take_no_memory() -> None:
    """A window in 10**12 layers is not written down layer by layer."""
    begun = time.perf_counter()
    assert contradictions(config(**MISTRAL), config(**MISTRAL, num_hidden_layers=10**12)) == [
        "layers is 3, not 1000000000000"
    ]
    assert time.perf_counter() - begun < 0.5


def test_a_dense_checkpoint_is_seen_as_it_is(checkpoint: Checkpoint) -> None:
    """Nothing reads it but its reader."""
    source = open_source(checkpoint())
    assert source.tensors() is source.stored
    assert (source.layout.name, source.rules, source.dequantizer, source.quantization) == ("hf", (), None, None)
    assert source.descriptions == (checkpoint() / "config.json",)


@pytest.mark.parametrize("layout", ["litgpt", "lit-llama", "meta"])
def test_another_layout_is_seen_as_the_hubs(checkpoint: Checkpoint, tmp_path: Path, layout: str) -> None:
    """The hub's names, shapes and tensors, bit for bit."""
    hub = load_weights(checkpoint(**LLAMA_1))
    out = to(layout, checkpoint(**LLAMA_1), tmp_path / "out").out
    source = open_source(out, given=Given(heads=6, vocab_size=290))
    assert source.layout.name == layout
    assert source.tensors().specs.keys() == hub.keys()
    assert all(torch.equal(source.tensors()[name].read(), tensor) for name, tensor in hub.items())
    assert source.stored.specs.keys() == stored(out).keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_weights_are_seen_as_dense(quantized_llama: Quantized, dtype: torch.dtype) -> None:
    """In the dtype that is asked for; what is dense keeps its own."""
    directory = quantized_llama(mode="gptq.int4")
    source = open_source(directory)
    assert source.quantization is not None
    dense = dequantize(load_weights(directory), dict(source.quantization))
    tensors = source.tensors(dtype)
    layers = {layer.weight.name for layer in source.layers if layer.weight is not None}
    assert tensors.specs.keys() == dense.keys()
    assert len(layers) == 21
    for name, tensor in dense.items():
        assert torch.equal(tensors[name].read(), tensor.to(dtype) if name in layers else tensor), name


def test_lit_llamas_codes_are_seen_as_the_hubs_weights(lit_llama_codes: Path) -> None:
    """Dequantized, taken apart and put in Hugging Face's order."""
    source = open_source(lit_llama_codes, given=Given(**PACKED_STATED))
    assert source.dequantizer == ColBlock(4)
    dense, tensors = lit_llama_dense(stored(lit_llama_codes), 4), source.tensors()
    fused = dense["transformer.h.1.attn.c_attn.weight"]
    query = tensors["model.layers.1.self_attn.q_proj.weight"].read()
    assert torch.equal(query.view(6, 2, 8, 96).transpose(1, 2).reshape(96, 96), fused[:96])
    assert torch.equal(tensors["model.layers.1.self_attn.v_proj.weight"].read(), fused[192:])
    assert tensors.specs["lm_head.weight"].shape == (288, 96)


def test_a_method_that_is_not_read_is_an_error_when_it_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Not before: what is only copied need not be."""

    directory = shutil.copytree(checkpoint(), tmp_path / "source")
    source = open_source(patch_config(directory, quantization_config={"quant_method": "awq"}))
    assert source.quantization == {"quant_method": "awq"}
    for action in (lambda: source.dequantizer, source.tensors):
        with pytest.raises(UnsupportedError, match=r"^quantization_config with quant_method='awq' cannot be read$"):
            action()


def test_descriptions_are_all_files_that_describe(
    checkpoint: Checkpoint, quantized_llama: Quantized, lit_llama_codes: Path, tmp_path: Path
) -> None:
    """litgpt's config.json beside its own, quantize_config.json beside config.json, none of lit-llama's."""
    litgpt = to("litgpt", checkpoint(), tmp_path / "litgpt").out
    assert [path.name for path in open_source(litgpt).descriptions] == ["model_config.yaml", "config.json"]
    quantized = quantized_llama(**WHOLE)
    assert [path.name for path in open_source(quantized).descriptions] == ["config.json", "quantize_config.json"]
    assert open_source(lit_llama_codes, given=Given(**PACKED_STATED)).descriptions == ()
