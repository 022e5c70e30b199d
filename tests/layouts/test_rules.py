from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.config import ModelConfig
from llamaconv.errors import UnsupportedError
from llamaconv.layouts import lit_llama, litgpt, meta_llama
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.known import HUGGING_FACE
from llamaconv.layouts.rules import Layout, Rule
from llamaconv.layouts.view import View
from llamaconv.tensors import TensorSpec
from tests.configs import config
from tests.layouts.in_memory import InMemory
from tests.layouts.random_configs import FAMILIES, configs, first_llamas, llamas

LAYOUTS = (
    HUGGING_FACE,
    litgpt.LAYOUT,
    litgpt.LEGACY,
    meta_llama.LAYOUT,
    meta_llama.layout(2, "rows"),
    meta_llama.layout(2, "columns"),
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


def holders(model: ModelConfig) -> list[Layout]:
    """The layouts that can hold a model."""
    found = []
    for layout in LAYOUTS:
        with suppress(UnsupportedError):
            layout.rules(model)
            found.append(layout)
    return found


def check_every_pair(model: ModelConfig, layouts: list[Layout]) -> None:
    hub = tensors_of(model)
    tables = [layout.rules(model) for layout in layouts]
    stored = [run(rules, hub) for rules in tables]
    through_hub = [
        View(InMemory(tensors), [rule.inverse() for rule in rules])
        for rules, tensors in zip(tables, stored, strict=True)
    ]
    for back in through_hub:
        check_same(back, hub)
    for back, (rules, expected) in product(through_hub, zip(tables, stored, strict=True)):
        check_same(View(back, rules), expected)


def check_same(view: View, expected: dict[str, Tensor]) -> None:
    assert view.specs == {name: TensorSpec.of(name, tensor) for name, tensor in expected.items()}
    assert all(torch.equal(tensor, view[name].read()) for name, tensor in expected.items())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30)
@given(data=st.data())
def test_every_pair_of_layouts_goes_there_and_back(family: str, data: st.DataObject) -> None:
    """By way of the hub, bit for bit: what one layout stores, seen through the other's rules, is what that stores."""
    model = data.draw(configs(family))
    check_every_pair(model, holders(model))


@pytest.mark.parametrize(
    ("family", "layouts"),
    [
        ("llama", LAYOUTS[:6]),
        ("mistral", LAYOUTS[:6]),
        ("mixtral", LAYOUTS[:3]),
        ("qwen2", LAYOUTS[:3]),
        ("qwen3", LAYOUTS[:3]),
    ],
)
def test_the_law_is_not_empty(family: str, layouts: tuple[Layout, ...]) -> None:
    """Among the models that it is tried on are some that all these layouts hold, and none that another does."""
    drawn = settings(phases=[Phase.generate], max_examples=200, derandomize=True, database=None)
    model = find(configs(family), lambda model: len(holders(model)) >= len(layouts), settings=drawn)
    assert holders(model) == list(layouts)


@settings(max_examples=8)
@given(first_llamas())
def test_every_layout_holds_a_llama_1_and_gives_it_back(model: ModelConfig) -> None:
    """The same law for the one kind of model that no layout refuses."""
    check_every_pair(model, list(LAYOUTS))


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
@pytest.mark.parametrize("embedding", ["rows", "columns"])
@settings(max_examples=15)
@given(data=st.data())
def test_tensor_parallel_ranks_are_joined_to_the_model_they_were_split_from(
    ranks: int, embedding: meta_llama.Axis, data: st.DataObject
) -> None:
    """Each rank holds its share, in order, of what one file would hold, and all of every norm."""
    model = data.draw(llamas(ranks))
    hub = tensors_of(model)
    rules = meta_llama.layout(ranks, embedding).rules(model)
    stored = run(rules, hub)
    check_same(View(InMemory(stored), [rule.inverse() for rule in rules]), hub)
    by_columns = {"wo", "w2"} | ({"tok_embeddings"} if embedding == "columns" else set())
    for name, whole in run(meta_llama.LAYOUT.rules(model), hub).items():
        module = name.split(".")[-2]
        shares = [whole] * ranks if "norm" in module else whole.chunk(ranks, 1 if module in by_columns else 0)
        for rank, share in enumerate(shares):
            assert torch.equal(share, stored[f"{rank:02d}/{name}" if ranks > 1 else name])


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("embedding", ["rows", "columns"])
@given(data=st.data())
def test_ranks_take_only_what_they_can_share_evenly(
    ranks: int, embedding: meta_llama.Axis, data: st.DataObject
) -> None:
    """Any model whose sizes leave no remainder, and no other."""
    model = data.draw(llamas(data.draw(st.sampled_from([1, 2, ranks]))))
    sizes = [model.heads, model.kv_heads, model.intermediate_size, model.vocab_size]
    sizes += [model.hidden_size] if embedding == "columns" else []
    uneven = [size for size in sizes if size % ranks]
    try:
        meta_llama.layout(ranks, embedding).rules(model)
    except UnsupportedError as error:
        first, *facts = str(error).splitlines()
        assert first == "The layout meta cannot hold this model:"
        assert [int(fact.split()[0]) for fact in facts] == uneven
        assert all(fact.endswith(f"cannot be split over {ranks} ranks") for fact in facts)
    else:
        assert not uneven


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
    assert caught.value.hint == "Hugging Face's own layout holds every model, litgpt most."
    with pytest.raises(UnsupportedError, match=r"it has no place for model\.layers\.0\.self_attn\.q_proj\.bias"):
        meta_llama.LAYOUT.rules(config(model_type="qwen2"))
