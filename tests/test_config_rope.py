"""The rotary base and scaling in config.json, wherever transformers 4.57 and 5 put them."""

from __future__ import annotations

from typing import Any

import pytest

from llamaconv.errors import ConfigError
from tests.configs import config


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({}, 25000.0, None),
        ({"rope_theta": 50000}, 50000.0, None),
        ({"rope_theta": ...}, 10000.0, None),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 7.5}}, 7.5, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 25000.0}, "rope_scaling": None}, 25000.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 25000.0, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope_theta": ...,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "rope_theta": 5e5,
                    "original_max_position_embeddings": 64,
                },
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
            },
            5e5,
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_theta": ...,
                "rope_parameters": {"full_attention": {"rope_theta": 1e6}},
            },
            None,
            None,
        ),
        ({"model_type": "gptj", "rope_theta": ...}, None, None),
    ],
)
def test_both_forms_of_rope_are_read(
    changes: dict[str, Any], theta: float | None, scaling: dict[str, Any] | None
) -> None:
    """The base is found in all its places, the scaling comes without it and under its newer name."""
    parsed = config(**changes)
    assert (parsed.rope_theta, parsed.rope_scaling) == (theta, scaling)


def test_contradicting_rope_is_refused() -> None:
    """transformers 4.57 and 5 would read different models out of one file."""
    with pytest.raises(ConfigError) as caught:
        config(rope_parameters={"rope_type": "yarn", "factor": 4.0}, rope_scaling={"type": "yarn", "factor": 2.0})
    assert str(caught.value) == "config.json: rope_parameters.factor is 4.0, but rope_scaling.factor is 2.0."
