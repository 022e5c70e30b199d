"""A Llama's config.json, put together from facts that stand elsewhere, and what in one is more than a Llama.

For layouts whose code computes Llamas and nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from llamaconv.config import ModelConfig, parse_config, with_both_rope_forms
from llamaconv.errors import CheckpointError, UsageError
from llamaconv.json_files import shown
from llamaconv.layouts.hugging_face import FAMILIES
from llamaconv.layouts.sliding_window import sliding_window
from llamaconv.tensors import TensorSpec

__all__ = ["beyond_llama", "dtype_keys", "layer_count", "llama_config", "matrices", "require_agreement", "stated"]

Fact = TypeVar("Fact", int, float)

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def beyond_llama(config: ModelConfig) -> list[str]:
    """What code for a Llama without biases does not compute, one fact each with its value; empty if there is nothing.

    Rotary scaling is not looked at. Norms of queries and keys, and Qwen 2's biases, are tensors without a place.

    Raises:
        ConfigError: Values of a sliding window that cannot be.
    """
    facts = []
    if config.head_dim * config.heads != config.hidden_size:
        facts.append(f"head_dim {config.head_dim} is not the hidden size over the {config.heads} heads")
    heeded = {template.only_if for template in FAMILIES.get(config.model_type, ())}
    if config.attention_bias and "attention_bias" in heeded:
        facts.append("attention_bias is true")
    if config.mlp_bias and "mlp_bias" in heeded:
        facts.append("mlp_bias is true")
    if config.experts:
        facts.append(f"a mixture of {config.experts} experts")
    activation = config.raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        facts.append(f"the activation {shown(activation)}; it computes silu")
    window = sliding_window(config)
    if window is not None:
        facts.append(f"a sliding window of {window.size} positions")
    if config.rope_theta is None:
        facts.append("a rotary base for each type of layer")
    return facts


def llama_config(path: Path, facts: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """config.json for ``LlamaForCausalLM``, as transformers 4.57 and 5 read it.

    Args:
        path: Where the facts come from, for messages.
        facts: By their keys; ``rope_theta`` and ``rope_scaling`` in 4.57's places.
        specs: The weights, for their dtype.

    Raises:
        ConfigError: Facts that cannot be true together.
    """
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **facts,
        "head_dim": facts["hidden_size"] // facts["num_attention_heads"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **dtype_keys(specs),
    }
    return with_both_rope_forms(parse_config(json.dumps(raw).encode(), path))


def dtype_keys(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """The dtype of most of the weights' numbers, as both keys of config.json; none if they are all quantized."""
    sizes: Counter[torch.dtype] = Counter()
    for spec in specs.values():
        if spec.dtype in _DTYPES:
            sizes[spec.dtype] += spec.numel
    names = [str(dtype).removeprefix("torch.") for dtype, _ in sizes.most_common(1)]
    return {key: name for name in names for key in ("dtype", "torch_dtype")}


def stated(fact: Fact | None, usual: Fact, what: str, like: str, option: str, notes: list[str]) -> Fact:
    """What is stated, or the usual value; then a note says so.

    Args:
        fact: As the user or a file states it, None if nobody does.
        usual: Else.
        what: Names the fact.
        like: Where the usual value is usual, as a clause.
        option: That states the fact.
        notes: Grows.
    """
    if fact is not None:
        return fact
    notes.append(f"{what} is {shown(usual)}, as {like}; {option} states another")
    return usual


def require_agreement(path: Path, pairs: Mapping[str, tuple[float | None, float | None]]) -> None:
    """Refuse options that say something else than a layout's files.

    Args:
        path: Of the files, for the message.
        pairs: By option, what the user states and what the files say; None for nothing.

    Raises:
        UsageError: All of them.
    """
    faults = [
        f"{path}: {option} says {shown(given)}, but there it is {shown(found)}."
        for option, (given, found) in pairs.items()
        if given is not None and found is not None and given != found
    ]
    if faults:
        raise UsageError("\n".join(faults), hint="An option states what the files leave open.", file=str(path))


def matrices(path: Path, specs: Mapping[str, TensorSpec], names: Iterable[str]) -> list[tuple[int, int]]:
    """The shapes of matrices from which sizes are read.

    Raises:
        CheckpointError: Tensors that are missing or no matrices, all of them.
    """
    shapes: list[tuple[int, int]] = []
    faults = []
    for name in names:
        if name not in specs:
            faults.append(f"{path}: the weights lack {name}, from which the model's sizes are read.")
            continue
        match specs[name].shape:
            case (rows, columns) if rows and columns:
                shapes.append((rows, columns))
            case shape:
                faults.append(f"{path}: {name} is {list(shape)}, where a matrix belongs.")
    if faults:
        raise CheckpointError("\n".join(faults), file=str(path))
    return shapes


def layer_count(names: Iterable[str], prefix: str, faults: list[str]) -> int:
    """How many layers there are tensors of; a fault is written down if their numbers are not 0, 1, 2, …

    Args:
        names: Of all tensors.
        prefix: Before a layer's number ("layers.").
        faults: Grows.
    """
    found = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    missing = [str(layer) for layer in range(len(found)) if str(layer) not in found]
    if missing:
        strange = sorted(found - {str(layer) for layer in range(len(found))})
        faults.append(
            f"the weights have {len(found)} layers, but among their numbers there is {shown(', '.join(strange))} "
            f"and not {shown(', '.join(missing))}"
        )
    return len(found)
