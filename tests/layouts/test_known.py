"""Which layout a checkpoint has, told by its tensors' names."""

from __future__ import annotations

import pytest

from llamaconv.config import ModelConfig
from llamaconv.layouts import meta_llama
from llamaconv.layouts.hugging_face import FAMILIES, expected_tensors
from llamaconv.layouts.known import HUGGING_FACE, LAYOUTS, nearest, recognized
from llamaconv.layouts.rules import Layout
from tests.configs import config

LLAMA_1 = config(num_key_value_heads=6, head_dim=8, intermediate_size=256, rope_theta=10000.0)
MODELS = {
    "Llama 1": LLAMA_1,
    "Llama 3": config(head_dim=8, vocab_size=128256),
    "biases": config(attention_bias=True, mlp_bias=True),
    "Mistral": config(model_type="mistral"),
    "Qwen2": config(model_type="qwen2"),
    "Qwen3": config(model_type="qwen3"),
    "Mixtral": config(model_type="mixtral", num_local_experts=3),
}
HOLDS = {
    "lit-llama": {"Llama 1"},
    "meta": {"Llama 1", "Llama 3"},
    "meta of 2 ranks": {"Llama 1", "Llama 3"},
}


def names(layout: Layout, model: ModelConfig) -> list[str]:
    return [name for rule in layout.rules(model) for name in rule.local]


@pytest.mark.parametrize(
    ("name", "layout", "model"),
    [
        (name, layout, model)
        for name, layout in {**LAYOUTS, "meta of 2 ranks": meta_llama.layout(2)}.items()
        for model in sorted(HOLDS.get(name, MODELS))
    ],
)
def test_each_layout_is_told_from_all_others(name: str, layout: Layout, model: str) -> None:
    """For every family that it holds, and for one layer of it too, as in a shard."""
    found = names(layout, MODELS[model])
    assert recognized(found) is LAYOUTS[layout.name]
    assert recognized(item for item in found if ".1." in item) is LAYOUTS[layout.name]


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_layers_are_their_layouts(family: str) -> None:
    """Whatever stands for a weight, the module's name is the layout's."""
    tensors = list(expected_tensors(config(model_type=family)) or {})
    gptq = [
        name.replace("_proj.weight", f"_proj.{part}") for name in tensors for part in ("qweight", "scales", "g_idx")
    ]
    nf4 = [*tensors, *(f"{name}.absmax" for name in tensors if "_proj" in name)]
    assert recognized(gptq) is HUGGING_FACE
    assert recognized(nf4) is HUGGING_FACE
    codes = [name.replace(".weight", ".quant_weight") for name in names(LAYOUTS["lit-llama"], LLAMA_1)]
    assert recognized(codes) is LAYOUTS["lit-llama"]


def test_most_modules_must_be_a_layouts() -> None:
    """Half of them are not enough, and numbers make none more of one."""
    half = ["norm.weight", "output.weight", "one.weight", "other.weight"]
    assert recognized(half) is None
    assert recognized([*half, "tok_embeddings.weight"]) is LAYOUTS["meta"]
    assert recognized([*(f"layers.{layer}.attention.wq.weight" for layer in range(99)), "a.b", "c.d"]) is None
    assert recognized([]) is None


def test_the_nearest_is_told_with_how_near_it_is() -> None:
    """How many modules, and of how many; a layer counts once."""
    layout, shared, modules = nearest(["00/norm.weight", "layers.0.ffn_norm.weight", "layers.1.ffn_norm.bias", "a.b"])
    assert (layout.name, shared, modules) == ("meta", 2, 3)
