"""model_config.yaml as others may have written it: fields that cannot be."""

from __future__ import annotations

import time
from typing import Any

import pytest

from llamaconv.errors import ConfigError
from llamaconv.layouts.description import Native
from llamaconv.layouts.litgpt_fields import fields_in
from tests.layouts.litgpt_fields import PATH, native


def _faults(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        fields_in(native(**changes))
    return [line.removeprefix(f"{PATH}: ") for line in str(caught.value).splitlines()]


def test_missing_fields_are_listed_together() -> None:
    """Those that every version has written, and without which litgpt would take another architecture's."""
    with pytest.raises(ConfigError) as caught:
        fields_in(Native(PATH, {"name": "Llama"}, {}))
    names = (
        *("block_size", "n_layer", "n_embd", "n_head", "vocab_size", "mlp_class_name", "norm_class_name"),
        *("parallel_residual", "bias", "rotary_percentage"),
    )
    assert str(caught.value).splitlines() == [f"{PATH}: {name} is missing." for name in names]


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        (
            {"n_layer": 3.0, "norm_eps": "1e-5", "bias": 0, "mlp_class_name": "SwiGLU"},
            [
                "n_layer is 3.0: input should be a valid integer.",
                "mlp_class_name is \"SwiGLU\": input should be 'GptNeoxMLP', 'LLaMAMLP', 'GemmaMLP' or 'LLaMAMoE'.",
                'norm_eps is "1e-5": input should be a valid number.',
                "bias is 0: input should be a valid boolean.",
            ],
        ),
        (
            {"head_size": ..., "n_head": 7, "n_query_groups": 2, "intermediate_size": None},
            [
                "head_size is missing, and n_embd, 48, is not a multiple of n_head, 7.",
                "n_head is 7, not a multiple of n_query_groups, 2.",
                "intermediate_size is missing.",
            ],
        ),
        ({"head_size": 15}, ["head_size is 15, but rotary embeddings turn pairs."]),
        (
            {"sliding_window_size": 9, "sliding_window_indices": [1, 1]},
            ["sliding_window_indices are 2, but n_layer is 3."],
        ),
        (
            {"sliding_window_size": 0, "sliding_window_indices": [2]},
            [
                "sliding_window_size is 0: input should be greater than 0.",
                "sliding_window_indices.0 is 2: input should be less than or equal to 1.",
            ],
        ),
        (
            {"rope_adjustments": {"low_freq_factor": 1.0, "factor": 0}},
            ["rope_adjustments.factor is 0: input should be greater than 0."],
        ),
        (
            {"rope_adjustments": {"low_freq_factor": 1.0, "factor": 2}},
            ["rope_adjustments.high_freq_factor is missing.", "rope_adjustments.original_max_seq_len is missing."],
        ),
        (
            {"mlp_class_name": "LLaMAMoE", "n_expert": 2, "n_expert_per_token": 3},
            ["n_expert_per_token is 3, but n_expert is 2."],
        ),
        (
            {"mlp_class_name": "LLaMAMoE"},
            ["n_expert_per_token is 0, but n_expert is 0."],
        ),
    ],
)
def test_fields_that_cannot_be_are_named(changes: dict[str, Any], faults: list[str]) -> None:
    """Each with its value, all in one error."""
    assert _faults(**changes) == faults


def test_claims_cost_nothing() -> None:
    """10**12 layers of 10**9 experts are held against the number of tensors, in no time."""
    changes = {"mlp_class_name": "LLaMAMoE", "n_expert_per_token": 1, "sliding_window_size": 9}
    begun = time.perf_counter()
    assert _faults(n_layer=10**12, n_expert=10**9, **changes) == [
        "n_layer is 1000000000000, but the weights have 100 tensors.",
        "n_expert is 1000000000, but the weights have 100 tensors.",
    ]
    assert _faults(n_layer=20, n_expert=6, **changes) == ["n_expert is 6, but the weights have 100 tensors."]
    assert time.perf_counter() - begun < 1
