from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from llamaconv.config import ModelConfig
from llamaconv.errors import UnsupportedError
from llamaconv.layouts import lit_llama, litgpt, meta_llama
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.known import HUGGING_FACE
from llamaconv.layouts.rules import Layout, Rule
from llamaconv.layouts.view import View
from tests.configs import config
from tests.layouts.in_memory import InMemory

LAYOUTS = (
    HUGGING_FACE,
    litgpt.LAYOUT,
    litgpt.LEGACY,
    meta_llama.LAYOUT,
    meta_llama.layout(2),
    lit_llama.LAYOUT,
)
LLAMA_1 = config(
    hidden_size=64, intermediate_size=256, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
    num_hidden_layers=2, vocab_size=70, rope_theta=10000.0, tie_word_embeddings=False,
)  # fmt: skip
LLAMA_3 = config(
    hidden_size=48, intermediate_size=80, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
    num_hidden_layers=3, vocab_size=70, rope_theta=500000.0, tie_word_embeddings=False,
)  # fmt: skip


def tensors_of(model: ModelConfig) -> dict[str, Tensor]:
    shapes = expected_tensors(model)
    assert shapes is not None
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def run(rules: tuple[Rule, ...], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the hub to the layout."""
    made: dict[str, Tensor] = {}
    for rule in rules:
        made.update(zip(rule.local, rule.operation.apply(tuple(tensors[name] for name in rule.hub)), strict=True))
    return made


@pytest.mark.parametrize(
    ("source", "target", "model"),
    [
        pytest.param(source, target, model, id=f"{source.name}-{target.name}-{name}")
        for name, model, layouts in (("llama-1", LLAMA_1, LAYOUTS), ("llama-3", LLAMA_3, LAYOUTS[:5]))
        for source, target in product(layouts, layouts)
    ],
)
def test_every_pair_of_layouts_goes_there_and_back(source: Layout, target: Layout, model: ModelConfig) -> None:
    """By way of the hub, bit for bit: what one layout stores, seen through the other's rules, is what that stores."""
    hub = tensors_of(model)
    first, second = source.rules(model), target.rules(model)
    seen = View(View(InMemory(run(first, hub)), [rule.inverse() for rule in first]), second)
    expected = run(second, hub)
    assert seen.specs.keys() == expected.keys()
    assert all(torch.equal(tensor, seen[name].read()) for name, tensor in expected.items())
    back = View(InMemory(expected), [rule.inverse() for rule in second])
    assert back.specs.keys() == hub.keys()
    assert all(torch.equal(tensor, back[name].read()) for name, tensor in hub.items())


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_tensor_of_a_model_has_one_place(layout: Layout) -> None:
    """Set equality on the hub's side, no name twice on the layout's."""
    rules = layout.rules(LLAMA_1)
    hub = [name for rule in rules for name in rule.hub]
    local = [name for rule in rules for name in rule.local]
    assert sorted(hub) == sorted(tensors_of(LLAMA_1))
    assert len(set(local)) == len(local)


def test_litgpt_fuses_biases_and_keeps_norms_of_queries_and_keys() -> None:
    """Qwen 2 has the ones, Qwen 3 the others."""
    names = {
        kind: {name for rule in litgpt.LAYOUT.rules(config(model_type=kind)) for name in rule.local}
        for kind in ("qwen2", "qwen3")
    }
    assert "transformer.h.0.attn.qkv.bias" in names["qwen2"]
    assert {"transformer.h.0.attn.norm_q.weight", "transformer.h.0.attn.norm_k.weight"} <= names["qwen3"]


@pytest.mark.parametrize("layout", [*LAYOUTS[1:]], ids=lambda layout: f"{layout.name}-{layout.ranks}")
def test_a_tied_head_is_stored_as_the_embedding(layout: Layout) -> None:
    """Where a layout has no way to tie: from one tensor both, and back from both the one."""
    model = replace(LLAMA_1, tied=True)
    hub = tensors_of(model)
    rules = layout.rules(model)
    stored = run(rules, hub)
    untied = run(layout.rules(LLAMA_1), hub | {"lm_head.weight": hub["model.embed_tokens.weight"]})
    assert stored.keys() == untied.keys()
    assert all(torch.equal(tensor, untied[name]) for name, tensor in stored.items())
    back = View(InMemory(stored), [rule.inverse() for rule in rules])
    assert torch.equal(back["model.embed_tokens.weight"].read(), hub["model.embed_tokens.weight"])
    assert "lm_head.weight" not in back.specs


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_tensor_parallel_ranks_are_joined_to_the_model_they_were_split_from(ranks: int, axis: meta_llama.Axis) -> None:
    """Any number of ranks that divides the heads; each rank holds an equal share of what is split and all norms."""
    model = config(
        hidden_size=128, intermediate_size=176, num_attention_heads=16, num_key_value_heads=8, head_dim=8,
        num_hidden_layers=2, vocab_size=80, tie_word_embeddings=False,
    )  # fmt: skip
    hub = tensors_of(model)
    rules = meta_llama.layout(ranks, axis).rules(model)
    stored = run(rules, hub)
    back = View(InMemory(stored), [rule.inverse() for rule in rules])
    assert all(torch.equal(tensor, back[name].read()) for name, tensor in hub.items())
    if ranks > 1:
        embedding = (80 // ranks, 128) if axis == "rows" else (80, 128 // ranks)
        last = f"{ranks - 1:02d}/"
        assert stored[f"{last}tok_embeddings.weight"].shape == embedding
        assert stored[f"{last}layers.1.attention.wo.weight"].shape == (128, 128 // ranks)
        assert torch.equal(stored[f"{last}norm.weight"], hub["model.norm.weight"])


def test_what_ranks_cannot_share_evenly_is_refused() -> None:
    """Heads are not cut, key-value heads least of all."""
    with pytest.raises(UnsupportedError) as caught:
        meta_llama.layout(4).rules(LLAMA_3)
    assert str(caught.value).splitlines() == [
        "The layout meta cannot hold this model:",
        "6 heads cannot be split over 4 ranks",
        "2 key-value heads cannot be split over 4 ranks",
        "70 rows of the vocabulary cannot be split over 4 ranks",
    ]


def test_meta_takes_keys_by_their_own_heads() -> None:
    """The permutation of k counts key-value heads, the values are not permuted."""
    hub = tensors_of(LLAMA_3)
    made = run(meta_llama.LAYOUT.rules(LLAMA_3), hub)
    key = hub["model.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(made["layers.1.attention.wk.weight"], key.view(2, 2, 4, 48).transpose(1, 2).reshape(16, 48))
    assert torch.equal(made["layers.1.attention.wv.weight"], hub["model.layers.1.self_attn.v_proj.weight"])


def test_what_a_layout_cannot_hold_is_said_all_at_once() -> None:
    """The facts, and a layout that can."""
    with pytest.raises(UnsupportedError) as caught:
        lit_llama.LAYOUT.rules(LLAMA_3)
    assert str(caught.value).splitlines() == [
        "The layout lit-llama cannot hold this model:",
        "2 key-value heads for 6 heads (grouped-query attention)",
        "an MLP of 80; it computes 256",
        "a rotary base of 500000; it computes with 10000",
    ]
    assert caught.value.hint == "litgpt holds every family; Hugging Face's own layout does in any case."
    with pytest.raises(UnsupportedError, match=r"it has no place for model\.layers\.0\.self_attn\.q_proj\.bias"):
        meta_llama.LAYOUT.rules(config(model_type="qwen2"))


def test_the_largest_models_are_expanded_on_meta_in_no_time() -> None:
    """Llama 3.1 405B: shapes alone, through every layout that can hold it."""
    model = config(
        hidden_size=16384, intermediate_size=53248, num_attention_heads=128, num_key_value_heads=8, head_dim=128,
        num_hidden_layers=126, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip
    shapes = expected_tensors(model)
    assert shapes is not None
    hub = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for layout in (litgpt.LAYOUT, litgpt.LEGACY, meta_llama.LAYOUT):
        made = run(layout.rules(model), hub)
        assert sum(tensor.numel() for tensor in made.values()) == sum(tensor.numel() for tensor in hub.values())
    assert made["layers.125.attention.wk.weight"].shape == (1024, 16384)
