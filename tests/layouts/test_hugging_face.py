"""The table of tensors, held against transformers' own models, and what a checkpoint's disagreements look like."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from llamaconv.config import ModelConfig
from llamaconv.layouts.hugging_face import FAMILIES, HEAD, disagreements, expected_tensors
from llamaconv.tensors import TensorSpec
from tests.configs import config, raw_config


def _specs(config: ModelConfig) -> dict[str, TensorSpec]:
    shapes = expected_tensors(config)
    assert shapes is not None
    return {name: TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()}


def _shapes_on_disk(raw: dict[str, Any], directory: Path) -> dict[str, tuple[int, ...]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw)).save_pretrained(directory)
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no iterator


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biases", [{}, {"attention_bias": True}, {"mlp_bias": True}])
@pytest.mark.parametrize("head_dim", [16, ...])
def test_transformers_saves_the_same_tensors(
    family: str, tied: bool, biases: dict[str, bool], head_dim: object, tmp_path: Path
) -> None:
    """For every family, tied or not, with and without biases: the names and shapes that transformers writes."""
    changes = {"model_type": family, "tie_word_embeddings": tied, "head_dim": head_dim, **biases}
    if family == "mixtral":
        changes["num_local_experts"] = 5
    theirs = _shapes_on_disk(raw_config(**changes), tmp_path)
    assert expected_tensors(config(**changes)) == theirs


def test_templates_are_expanded_in_the_order_of_the_model() -> None:
    """The embedding, then layer after layer, then the norm and the head."""
    names = list(expected_tensors(config(model_type="mistral", num_hidden_layers=2)) or ())
    layer = [
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    ]
    assert names == [
        "model.embed_tokens.weight",
        *(f"model.layers.0.{name}" for name in layer),
        *(f"model.layers.1.{name}" for name in layer),
        "model.norm.weight",
        "lm_head.weight",
    ]


def test_unknown_families_have_no_table() -> None:
    """For other model types there is nothing to compare with."""
    assert expected_tensors(config(model_type="starcoder2")) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_agreement_is_silent(family: str) -> None:
    """A checkpoint that holds what its config says has no disagreements."""
    here = config(model_type=family)
    assert disagreements(here, _specs(here)) == []


def test_every_disagreement_has_a_line() -> None:
    """Missing and misshapen tensors in the model's order, then tensors that the config has no place for."""
    specs = _specs(config())
    del specs["model.layers.2.self_attn.k_proj.weight"]
    del specs["lm_head.weight"]
    for name, shape in {
        "model.layers.0.mlp.up_proj.weight": (48, 80),
        "model.norm.weight": (49,),
        "model.layers.3.mlp.up_proj.weight": (80, 48),
        "model.layers.1.self_attn.q_proj.bias": (96,),
    }.items():
        specs[name] = TensorSpec(name, shape, torch.bfloat16)
    assert disagreements(config(), specs) == [
        "model.layers.0.mlp.up_proj.weight: [48, 80] in the checkpoint, [80, 48] by config.json",
        "model.layers.2.self_attn.k_proj.weight: missing from the checkpoint, [32, 48] by config.json",
        "model.norm.weight: [49] in the checkpoint, [48] by config.json",
        "lm_head.weight: missing from the checkpoint, [112, 48] by config.json",
        "model.layers.3.mlp.up_proj.weight: [80, 48] in the checkpoint, no such tensor by config.json",
        "model.layers.1.self_attn.q_proj.bias: [96] in the checkpoint, no such tensor by config.json",
    ]


def test_a_tied_head_may_be_stored() -> None:
    """Where the config ties the head it may be there or not, but not in another shape than the embedding."""
    tied = config(tie_word_embeddings=True)
    specs = _specs(config(tie_word_embeddings=False))
    assert disagreements(tied, specs) == []
    specs[HEAD] = TensorSpec(HEAD, (111, 48), torch.bfloat16)
    assert disagreements(tied, specs) == ["lm_head.weight: [111, 48] in the checkpoint, [112, 48] by config.json"]


def test_rotary_frequencies_are_derived() -> None:
    """Old checkpoints store what follows from the config; that is no disagreement."""
    specs = _specs(config())
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"):
        specs[name] = TensorSpec(name, (8,), torch.float32)
    assert disagreements(config(), specs) == []


def test_more_layers_than_tensors_are_found_at_once() -> None:
    """10**12 layers are compared with the tensors there are, and the rest of the faults still comes out."""
    specs = _specs(config())
    del specs["model.layers.1.mlp.gate_proj.weight"]
    begun = time.perf_counter()
    faults = disagreements(config(num_hidden_layers=10**12, vocab_size=10**14), specs)
    assert time.perf_counter() - begun < 1
    assert faults == [
        "1000000000000 layers by config.json, but the checkpoint has 29 tensors",
        "model.embed_tokens.weight: [112, 48] in the checkpoint, [100000000000000, 48] by config.json",
        "model.layers.1.mlp.gate_proj.weight: missing from the checkpoint, [80, 48] by config.json",
        "lm_head.weight: [112, 48] in the checkpoint, [100000000000000, 48] by config.json",
    ]


def test_more_experts_than_tensors_are_found_at_once() -> None:
    """10**9 experts cost no time and no memory, and the faults of those that are there still come out."""
    specs = _specs(config(model_type="mixtral", num_local_experts=4))
    del specs["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    del specs["model.layers.2.block_sparse_moe.experts.0.w1.weight"]
    begun = time.perf_counter()
    faults = disagreements(config(model_type="mixtral", num_local_experts=10**9), specs)
    assert time.perf_counter() - begun < 1
    assert faults == [
        "1000000000 experts in 3 layers by config.json, but the checkpoint has 58 tensors",
        "model.layers.1.block_sparse_moe.experts.3.w2.weight: missing from the checkpoint, [48, 80] by config.json",
        "model.layers.2.block_sparse_moe.experts.0.w1.weight: missing from the checkpoint, [80, 48] by config.json",
    ]


def test_missing_experts_are_named() -> None:
    """One line for each tensor of theirs, and the router's shape."""
    specs = _specs(config(model_type="mixtral", num_hidden_layers=1, num_local_experts=3))
    assert disagreements(config(model_type="mixtral", num_hidden_layers=1, num_local_experts=4), specs) == [
        "model.layers.0.block_sparse_moe.gate.weight: [3, 48] in the checkpoint, [4, 48] by config.json",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight: missing from the checkpoint, [80, 48] by config.json",
        "model.layers.0.block_sparse_moe.experts.3.w2.weight: missing from the checkpoint, [48, 80] by config.json",
        "model.layers.0.block_sparse_moe.experts.3.w3.weight: missing from the checkpoint, [80, 48] by config.json",
    ]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 10**12), st.integers(1, 10**12))
def test_faults_are_in_proportion_to_the_tensors(experts: int, layers: int, claimed: int) -> None:
    """Whatever layers and experts are claimed together, there are not many more lines than tensors."""
    specs = _specs(config(model_type="mixtral", num_hidden_layers=2, num_local_experts=experts, num_experts_per_tok=1))
    claim = config(model_type="mixtral", num_hidden_layers=layers, num_local_experts=claimed, num_experts_per_tok=1)
    assert len(disagreements(claim, specs)) <= 15 * len(specs)


def test_layers_of_unknown_families_are_bounded_too() -> None:
    """Whatever the family, each layer has at least a tensor."""
    specs = _specs(config())
    assert disagreements(config(model_type="starcoder2"), specs) == []
    assert disagreements(config(model_type="starcoder2", num_hidden_layers=31), specs) == [
        "31 layers by config.json, but the checkpoint has 30 tensors"
    ]


@settings(max_examples=50)
@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_each_changed_tensor_is_one_line(family: str, data: st.DataObject) -> None:
    """However many tensors are taken away, added or reshaped: as many lines, each beginning with its name."""
    here = config(model_type=family)
    specs = _specs(here)
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(specs)), st.booleans()))
    added = data.draw(st.sets(st.text("abc", min_size=1, max_size=3)))
    for name, reshaped in changed.items():
        spec = specs.pop(name)
        if reshaped:
            specs[name] = TensorSpec(name, (*spec.shape, 1), spec.dtype)
    specs |= {name: TensorSpec(name, (2,), torch.int8) for name in added}
    lines = disagreements(here, specs)
    assert sorted(line.partition(":")[0] for line in lines) == sorted([*changed, *added])
