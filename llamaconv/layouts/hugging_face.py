"""The names and shapes of each family's tensors, as transformers saves them: templates over the config.

Source: transformers 5.23 ``models/{llama,mistral,mixtral,qwen2,qwen3}/modeling_*.py``, and ``conversion_mapping.py``
for the names of Mixtral's experts, which are fused in memory only. Weights are [out, in].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType
from typing import Literal

from llamaconv.config import ModelConfig
from llamaconv.tensors import TensorSpec

_Named = tuple[str, tuple[int, ...]]

__all__ = ["FAMILIES", "HEAD", "Template", "disagreements", "expected_tensors", "is_derived"]


@dataclass(frozen=True)
class Template:
    """A tensor of each layer (``{layer}`` in its name), of each expert of it (``{expert}``), or of the whole model.

    Attributes:
        name: Hugging Face name.
        shape: Each axis a product of the dimensions that ``_dimensions`` names ("heads*head_dim").
        only_if: The fact of the config on which the tensor's existence hangs.
    """

    name: str
    shape: tuple[str, ...]
    only_if: Literal["attention_bias", "mlp_bias", "untied"] | None = None


HEAD = "lm_head.weight"

_LAYER = "model.layers.{layer}."
_QUERIES, _KEYS = "heads*head_dim", "kv_heads*head_dim"

_EMBEDDING = (Template("model.embed_tokens.weight", ("vocab", "hidden")),)
_ATTENTION = (
    Template(_LAYER + "self_attn.q_proj.weight", (_QUERIES, "hidden")),
    Template(_LAYER + "self_attn.k_proj.weight", (_KEYS, "hidden")),
    Template(_LAYER + "self_attn.v_proj.weight", (_KEYS, "hidden")),
    Template(_LAYER + "self_attn.o_proj.weight", ("hidden", _QUERIES)),
)
_QKV_BIASES = (
    Template(_LAYER + "self_attn.q_proj.bias", (_QUERIES,)),
    Template(_LAYER + "self_attn.k_proj.bias", (_KEYS,)),
    Template(_LAYER + "self_attn.v_proj.bias", (_KEYS,)),
)
_ATTENTION_BIASES = (
    *(replace(bias, only_if="attention_bias") for bias in _QKV_BIASES),
    Template(_LAYER + "self_attn.o_proj.bias", ("hidden",), "attention_bias"),
)
_QK_NORMS = (
    Template(_LAYER + "self_attn.q_norm.weight", ("head_dim",)),
    Template(_LAYER + "self_attn.k_norm.weight", ("head_dim",)),
)
_MLP = (
    Template(_LAYER + "mlp.gate_proj.weight", ("intermediate", "hidden")),
    Template(_LAYER + "mlp.up_proj.weight", ("intermediate", "hidden")),
    Template(_LAYER + "mlp.down_proj.weight", ("hidden", "intermediate")),
)
_MLP_BIASES = (
    Template(_LAYER + "mlp.gate_proj.bias", ("intermediate",), "mlp_bias"),
    Template(_LAYER + "mlp.up_proj.bias", ("intermediate",), "mlp_bias"),
    Template(_LAYER + "mlp.down_proj.bias", ("hidden",), "mlp_bias"),
)
_MIXTURE = (
    Template(_LAYER + "block_sparse_moe.gate.weight", ("experts", "hidden")),
    Template(_LAYER + "block_sparse_moe.experts.{expert}.w1.weight", ("intermediate", "hidden")),
    Template(_LAYER + "block_sparse_moe.experts.{expert}.w2.weight", ("hidden", "intermediate")),
    Template(_LAYER + "block_sparse_moe.experts.{expert}.w3.weight", ("intermediate", "hidden")),
)
_NORMS = (
    Template(_LAYER + "input_layernorm.weight", ("hidden",)),
    Template(_LAYER + "post_attention_layernorm.weight", ("hidden",)),
)
_END = (
    Template("model.norm.weight", ("hidden",)),
    Template(HEAD, ("vocab", "hidden"), "untied"),
)

FAMILIES: Mapping[str, tuple[Template, ...]] = MappingProxyType(
    {
        "llama": (*_EMBEDDING, *_ATTENTION, *_ATTENTION_BIASES, *_MLP, *_MLP_BIASES, *_NORMS, *_END),
        "mistral": (*_EMBEDDING, *_ATTENTION, *_MLP, *_NORMS, *_END),
        "mixtral": (*_EMBEDDING, *_ATTENTION, *_MIXTURE, *_NORMS, *_END),
        "qwen2": (*_EMBEDDING, *_ATTENTION, *_QKV_BIASES, *_MLP, *_NORMS, *_END),
        "qwen3": (*_EMBEDDING, *_ATTENTION, *_ATTENTION_BIASES, *_QK_NORMS, *_MLP, *_NORMS, *_END),
    }
)
"""The tensors of each known ``model_type``, in the order of the model."""


def expected_tensors(config: ModelConfig) -> Mapping[str, tuple[int, ...]] | None:
    """Name and shape of every tensor that a checkpoint with this config holds; None for an unknown family.

    A tied head is not among them. Takes memory for as many layers and experts as the config claims: ask
    ``disagreements`` first.
    """
    templates = FAMILIES.get(config.model_type)
    return None if templates is None else dict(_expand(templates, config))


def disagreements(config: ModelConfig, specs: Mapping[str, TensorSpec]) -> list[str]:
    """What the tensors of a dense checkpoint and its config say differently, one line each; empty if nothing.

    Missing and misshapen tensors come first, in the model's order, then those that the config has no place
    for, in the checkpoint's. A tied head may be stored or not; derived tensors may be there. For an unknown
    family only the number of layers is held against the number of tensors. Takes time in proportion to the
    checkpoint, whatever the config says.
    """
    faults = []
    if config.layers > len(specs):
        faults.append(f"{config.layers} layers by config.json, but the checkpoint has {len(specs)} tensors")
        config = replace(config, layers=_present(config, specs, "{layer}"))
    if config.layers * (config.experts or 0) > len(specs):
        faults.append(
            f"{config.experts} experts in {config.layers} layers by config.json, "
            f"but the checkpoint has {len(specs)} tensors"
        )
        config = replace(config, experts=min(_present(config, specs, "{expert}"), len(specs) // config.layers))
    required = expected_tensors(config)
    allowed = expected_tensors(replace(config, tied=False))
    if required is None or allowed is None:
        return faults
    for name, shape in allowed.items():
        if name in specs:
            if specs[name].shape != shape:
                faults.append(f"{name}: {list(specs[name].shape)} in the checkpoint, {list(shape)} by config.json")
        elif name in required:
            faults.append(f"{name}: missing from the checkpoint, {list(shape)} by config.json")
    return faults + [
        f"{name}: {list(spec.shape)} in the checkpoint, no such tensor by config.json"
        for name, spec in specs.items()
        if name not in allowed and not is_derived(name)
    ]


def is_derived(name: str) -> bool:
    """Whether old checkpoints hold this tensor although it follows from the config (rotary frequencies)."""
    return name.endswith(".rotary_emb.inv_freq")


def _expand(templates: tuple[Template, ...], config: ModelConfig) -> Iterator[_Named]:
    facts = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias, "untied": not config.tied}
    dimensions = _dimensions(config)
    present = [template for template in templates if template.only_if is None or facts[template.only_if]]
    shaped = [(template.name, _shape(template, dimensions)) for template in present]
    return _each(_each(shaped, "{layer}", config.layers), "{expert}", config.experts or 0)


def _each(tensors: Iterable[_Named], placeholder: str, count: int) -> Iterator[_Named]:
    """Runs of names with the placeholder, once for each index in its place."""
    for repeated, run in groupby(tensors, key=lambda tensor: placeholder in tensor[0]):
        if not repeated:
            yield from run
            continue
        block = list(run)
        for index in range(count):
            yield from ((name.replace(placeholder, str(index)), shape) for name, shape in block)


def _dimensions(config: ModelConfig) -> Mapping[str, int]:
    return {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "experts": config.experts or 0,
    }


def _shape(template: Template, dimensions: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(dimensions[factor] for factor in axis.split("*")) for axis in template.shape)


def _present(config: ModelConfig, specs: Mapping[str, TensorSpec], placeholder: str) -> int:
    """How many layers, or experts of the first layer, counted from 0, have a tensor in the checkpoint."""
    stems = [template.name for template in FAMILIES.get(config.model_type, ()) if placeholder in template.name]
    count = 0
    while any(_first(stem.replace(placeholder, str(count))) in specs for stem in stems):
        count += 1
    return count


def _first(name: str) -> str:
    """What is left of a template's placeholders set to 0."""
    return name.replace("{layer}", "0").replace("{expert}", "0")
