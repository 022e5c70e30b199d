"""Sliding windows as config.json tells them, held against transformers."""

from __future__ import annotations

from typing import Any

import pytest

from llamaconv.errors import ConfigError
from llamaconv.layouts.sliding_window import SlidingWindow, sliding_window
from tests.configs import config, raw_config

FULL, SLIDING = "full_attention", "sliding_attention"
CASES: list[tuple[dict[str, Any], SlidingWindow | None]] = [
    ({"sliding_window": 9}, None),
    ({"model_type": "mistral"}, SlidingWindow(4096, (True, True, True))),
    ({"model_type": "mistral", "sliding_window": 9}, SlidingWindow(9, (True, True, True))),
    ({"model_type": "mistral", "sliding_window": None}, None),
    ({"model_type": "mixtral"}, None),
    ({"model_type": "mixtral", "sliding_window": 9}, SlidingWindow(9, (True, True, True))),
    ({"model_type": "qwen2", "sliding_window": 9}, None),
    ({"model_type": "qwen2", "use_sliding_window": True}, None),
    (
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
        SlidingWindow(4096, (False, True, True)),
    ),
    ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, None),
    (
        {
            "model_type": "qwen3",
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": [SLIDING, FULL, SLIDING],
        },
        SlidingWindow(9, (True, False, True)),
    ),
    ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9, "layer_types": [FULL] * 3}, None),
]


@pytest.mark.parametrize(("changes", "window"), CASES)
def test_windows_are_those_of_transformers(changes: dict[str, Any], window: SlidingWindow | None) -> None:
    """Each family has switches and defaults of its own; Llama has none."""
    from transformers import AutoConfig

    assert sliding_window(config(**changes)) == window
    theirs = AutoConfig.for_model(**raw_config(**changes))
    if theirs.model_type.startswith("qwen"):
        slides = tuple(kind == SLIDING for kind in theirs.layer_types)
        assert (theirs.sliding_window, slides) == (window.size, window.layers) if window else not any(slides)
    elif theirs.model_type != "llama":
        assert theirs.sliding_window == (window and window.size)


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"model_type": "mistral", "sliding_window": 0}, ["sliding_window is 0: input should be greater than 0"]),
        (
            {"model_type": "qwen2", "use_sliding_window": "yes", "max_window_layers": -1},
            [
                'use_sliding_window is "yes": input should be a valid boolean',
                "max_window_layers is -1: input should be greater than or equal to 0",
            ],
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": [SLIDING]},
            ["layer_types are 1, num_hidden_layers is 3"],
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": [SLIDING, "chunked_attention", FULL]},
            ["layer_types.1 is \"chunked_attention\": input should be 'full_attention' or 'sliding_attention'"],
        ),
    ],
)
def test_values_that_cannot_be_are_named(changes: dict[str, Any], faults: list[str]) -> None:
    """With the file and the key."""
    with pytest.raises(ConfigError) as caught:
        sliding_window(config(**changes))
    assert str(caught.value).splitlines() == [f"config.json: {fault}." for fault in faults]
