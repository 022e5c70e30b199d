"""The table of tensors, held against transformers' own models, and what a checkpoint's disagreements look like."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaconv.config import ModelConfig
from llamaconv.layouts.hugging_face import FAMILIES, HEAD, disagreements, expected_tensors
from llamaconv.tensors import TensorSpec
from tests.configs import config, raw_config


def _specs(config: ModelConfig) -> dict[str, TensorSpec]:
    shapes = expected_tensors(config)
    assert shapes is not None
    return {name: TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()}


def _shapes_in_transformers(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biases", [{}, {"attention_bias": True}, {"mlp_bias": True}])
@pytest.mark.parametrize("head_dim", [16, ...])
def test_transformers_builds_the_same_tensors(
    family: str, tied: bool, biases: dict[str, bool], head_dim: object
) -> None:
    """For every family, tied or not, with and without biases: the names and shapes of transformers' model."""
    changes = {"model_type": family, "tie_word_embeddings": tied, "head_dim": head_dim, **biases}
    theirs = _shapes_in_transformers(raw_config(**changes))
    if tied:
        del theirs[HEAD]
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
