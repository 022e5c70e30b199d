"""Plans of conversions: from shapes alone, of the largest models too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from llamaconv.config import ModelConfig
from llamaconv.layouts import meta_llama
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.known import LAYOUTS
from llamaconv.layouts.operations import Identity
from llamaconv.layouts.rules import Layout, Rule
from llamaconv.layouts.view import View
from llamaconv.plan.conversion import conversion_steps, plan_conversion
from llamaconv.sinks.sharding import Shard
from llamaconv.tensors import TensorSpec
from tests.configs import config
from tests.layouts.in_memory import InMemory

LLAMA = config(head_dim=8)
_LARGE: dict[str, Any] = {"head_dim": 128, "num_key_value_heads": 8}
LARGE: Mapping[str, tuple[ModelConfig, int, Layout, Layout]] = {
    "Llama 3.1 405B": (
        config(
            **_LARGE, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128,
            vocab_size=128256, rope_theta=500000.0,
        ),
        405_853_388_800,
        LAYOUTS["litgpt"],
        meta_llama.layout(8, "rows"),
    ),
    "Mixtral 8x22B": (
        config(
            **_LARGE, model_type="mixtral", hidden_size=6144, intermediate_size=16384, num_hidden_layers=56,
            num_attention_heads=48, vocab_size=32000, rope_theta=1e6, num_local_experts=8,
        ),
        140_620_634_112,
        LAYOUTS["litgpt-legacy"],
        LAYOUTS["litgpt"],
    ),
}  # fmt: skip
"""Config, parameters, and two layouts: from the one to the other."""


def meta(specs: Mapping[str, TensorSpec]) -> InMemory:
    """A reader of a model without its data."""
    return InMemory({name: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for name, spec in specs.items()})


def hub(model: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> InMemory:
    shapes = expected_tensors(model) or {}
    return meta({name: TensorSpec(name, shape, dtype) for name, shape in shapes.items()})


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_models_are_planned_in_seconds(name: str) -> None:
    """From one layout into another: every byte is accounted for, and the memory is that of a few tensors."""
    model, parameters, source, target = LARGE[name]
    begun = time.perf_counter()
    stored = meta(View(hub(model), source.rules(model)).specs)
    seen = View(stored, [rule.inverse() for rule in source.rules(model)])
    steps = conversion_steps(seen, target.rules(model), None)
    specs = tuple(spec for step in steps for spec in step.writes)
    plan = plan_conversion(steps, [Shard("all", specs)], [])
    copies = (target.ranks - 1) * model.hidden_size * (2 * model.layers + 1)
    assert plan.output_bytes == 2 * (parameters + copies)
    largest = max(spec.nbytes for spec in stored.specs.values())
    assert largest <= plan.peak_bytes <= 4 * largest
    assert time.perf_counter() - begun < 10


def test_steps_run_in_the_order_of_what_is_written() -> None:
    """File after file, whatever the order of the rules."""
    steps = conversion_steps(hub(LLAMA), LAYOUTS["litgpt"].rules(LLAMA), None)
    specs = [spec for step in reversed(steps) for spec in step.writes]
    shards = (Shard("one", tuple(specs[:9])), Shard("two", tuple(specs[9:])))
    plan = plan_conversion(steps, shards, ["a note"])
    assert [spec for step in plan.steps for spec in step.writes] == specs
    assert (plan.shards, plan.notes) == (shards, ("a note",))


def test_a_step_says_what_it_does() -> None:
    """What it reads and writes, under the names of either side, and in a word or two how."""
    steps = conversion_steps(hub(LLAMA), meta_llama.layout(2).rules(LLAMA), torch.float32)
    (keys,) = [step for step in steps if step.name == "00/layers.2.attention.wk.weight"]
    assert keys.reads == ("model.layers.2.self_attn.k_proj.weight",)
    assert keys.writes == tuple(
        TensorSpec(f"0{rank}/layers.2.attention.wk.weight", (8, 48), torch.float32) for rank in (0, 1)
    )
    assert keys.operation == "rotary of 2 heads to pairs; divide rows by 2"
    assert keys.flops == 0


@pytest.mark.parametrize(
    ("dtype", "written", "peak"),
    [
        (None, torch.bfloat16, 2),
        (torch.bfloat16, torch.bfloat16, 2),
        (torch.float16, torch.float16, 2 + 2),
        (torch.float32, torch.float32, 2 + 4),
    ],
)
def test_a_cast_takes_a_tensor_in_both_dtypes(dtype: torch.dtype | None, written: torch.dtype, peak: int) -> None:
    """The plan says so, and what the output's dtype will be."""
    reader = meta({"norm": TensorSpec("norm", (48,), torch.bfloat16)})
    (step,) = conversion_steps(reader, [Rule(("norm",), ("other",), Identity())], dtype)
    assert step.writes == (TensorSpec("other", (48,), written),)
    assert step.peak_bytes == 48 * peak
