"""``config.json``: what layouts and checks need of it, validated before any model class exists.

Keys as transformers writes them, 4.57 and 5 alike: the rope base at the top level or in ``rope_parameters``,
the dtype as ``dtype`` or ``torch_dtype``. Where a key may be missing, the default is that of transformers'
``models/*/configuration_*.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from llamaconv.errors import UnsupportedError
from llamaconv.json_files import config_error, parsed, read_object, shown, validated

__all__ = ["ModelConfig", "Real", "Size", "parse_config", "read_config", "with_both_rope_forms"]

Size = Annotated[int, Field(gt=0, le=10**15)]
"""Far above any model, so that a comparison with the tensors has the last word, and far below what overflows."""
Real = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A rotary base, a scale, an epsilon."""

_DtypeName = Literal["bfloat16", "float16", "float32", "float64"]


@dataclass(frozen=True)
class _Defaults:
    """What transformers takes where a family's config.json says nothing."""

    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: hidden_size / heads
    max_positions: int | None = None
    rope_theta: float | None = 10_000.0
    norm_eps: float | None = 1e-6
    mixture: bool = False
    tied: bool = False


_FAMILIES: Mapping[str, _Defaults] = MappingProxyType(
    {
        "llama": _Defaults(max_positions=2048),
        "mistral": _Defaults(kv_heads=8, max_positions=131072),
        "mixtral": _Defaults(kv_heads=8, max_positions=131072, rope_theta=1e6, norm_eps=1e-5, mixture=True),
        "qwen2": _Defaults(kv_heads=32, max_positions=32768),
        "qwen3": _Defaults(kv_heads=32, head_dim=128, max_positions=32768),
    }
)
# The base class of transformers 4.57 ties, and leaves out what equals its default when it saves.
_OTHERS = _Defaults(rope_theta=None, norm_eps=None, tied=True)


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model's dimensions and conventions.

    Attributes:
        raw: config.json as it was, keys in its order: what a writer patches.
        model_type: The architecture, as transformers names it (``llama``).
        architectures: Model classes (``LlamaForCausalLM``).
        hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, vocab_size: Sizes, all positive.
            ``kv_heads`` divides ``heads``.
        max_positions: The longest sequence; None where a model of an unknown type does not say.
        tied: Whether the head shares the embedding's weight.
        rope_theta: Base of the rotary frequencies; None where each type of layer has its own, or a model of
            an unknown type does not say.
        rope_scaling: What else shapes the frequencies, under transformers 5's names and without the base;
            None if nothing does.
        norm_eps: Epsilon of the RMS norms; None where a model of an unknown type does not say.
        experts, experts_per_token: Of a known mixture of experts, how many a layer has, and how many of them a token
            passes; None for any other model.
        attention_bias, mlp_bias: The keys of that name; which families heed them, their layout says.
        dtype: Of the weights, None where it is not said.
        quantization: ``quantization_config``, None for a dense model.
        source: The bytes of config.json; empty if there was no file.
    """

    raw: Mapping[str, Any]
    model_type: str
    architectures: tuple[str, ...]
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int | None
    tied: bool
    rope_theta: float | None
    rope_scaling: Mapping[str, Any] | None
    norm_eps: float | None
    experts: int | None
    experts_per_token: int | None
    attention_bias: bool
    mlp_bias: bool
    dtype: torch.dtype | None
    quantization: Mapping[str, Any] | None
    source: bytes = field(default=b"", repr=False)


class _Keys(BaseModel):
    """config.json's keys that are looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model_type: Annotated[str, Field(min_length=1)]
    architectures: list[str] | None = None
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    vocab_size: Size
    max_position_embeddings: Size | None = None
    tie_word_embeddings: bool | None = None
    rope_theta: Real | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: Real | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    dtype: _DtypeName | None = None
    torch_dtype: _DtypeName | None = None
    quantization_config: dict[str, Any] | None = None


class _Experts(BaseModel):
    """What Mixtral has besides, with transformers' defaults."""

    model_config = ConfigDict(strict=True, extra="ignore")

    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2


class _RopeTheta(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    rope_theta: Real | None = None


def read_config(directory: Path) -> ModelConfig:
    """Read ``config.json`` in ``directory``.

    Raises:
        ConfigError: Missing, over 16 MB, not a JSON object, keys missing, or values that cannot be; all
            faults of one kind are in one error.
        UnsupportedError: The model needs code of its own (``auto_map``), which is never run.
    """
    path = directory / "config.json"
    source, _ = read_object(path)
    return parse_config(source, path)


def parse_config(source: bytes, path: Path = Path("config.json")) -> ModelConfig:
    """The configuration in the bytes of a config.json; ``path`` is for the messages.

    Raises:
        ConfigError, UnsupportedError: As ``read_config``.
    """
    raw = parsed(source, path)
    if raw.get("auto_map"):
        raise UnsupportedError(
            f"{path}: auto_map is {shown(raw['auto_map'])}: remote code is never run.",
            hint="Use a model whose architecture transformers itself holds.",
            file=str(path),
        )
    keys = validated(_Keys, raw, path, _hint(raw))
    defaults = _FAMILIES.get(keys.model_type, _OTHERS)
    faults: list[str] = []
    theta, scaling = _rope(raw, path, defaults, faults)
    kv_heads = _kv_heads(keys, defaults, faults)
    head_dim = _head_dim(keys, defaults, faults)
    experts, experts_per_token = _experts(raw, path, faults) if defaults.mixture else (None, None)
    if faults:
        raise config_error(path, faults)
    dtype = keys.dtype or keys.torch_dtype
    return ModelConfig(
        raw=raw,
        model_type=keys.model_type,
        architectures=tuple(keys.architectures or ()),
        hidden_size=keys.hidden_size,
        intermediate_size=keys.intermediate_size,
        layers=keys.num_hidden_layers,
        heads=keys.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=keys.vocab_size,
        max_positions=keys.max_position_embeddings or defaults.max_positions,
        tied=defaults.tied if keys.tie_word_embeddings is None else keys.tie_word_embeddings,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=keys.rms_norm_eps or defaults.norm_eps,
        experts=experts,
        experts_per_token=experts_per_token,
        attention_bias=bool(keys.attention_bias),
        mlp_bias=bool(keys.mlp_bias),
        dtype=None if dtype is None else getattr(torch, dtype),
        quantization=keys.quantization_config,
        source=source,
    )


def with_both_rope_forms(config: ModelConfig) -> dict[str, Any]:
    """config.json as it was, with the rotary base and scaling wherever transformers may look for them.

    transformers 5 reads ``rope_parameters``; 4.57 reads ``rope_theta`` and ``rope_scaling``, and silently takes
    10000 for a base that it does not find. What is there already stays as it was written.
    """
    raw = dict(config.raw)
    if config.rope_theta is None:
        return raw
    scaling = dict(config.rope_scaling or {})
    forms = {
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", **scaling, "rope_theta": config.rope_theta},
        "rope_scaling": scaling,
    }
    return raw | {key: form for key, form in forms.items() if form and not raw.get(key)}


def _kv_heads(keys: _Keys, defaults: _Defaults, faults: list[str]) -> int:
    kv_heads = keys.num_key_value_heads
    if kv_heads is None:
        said = "num_key_value_heads" in keys.model_fields_set
        kv_heads = (None if said else defaults.kv_heads) or keys.num_attention_heads
    if keys.num_attention_heads % kv_heads:
        faults.append(
            f"num_attention_heads is {keys.num_attention_heads}, not a multiple of num_key_value_heads, {kv_heads}"
        )
    return kv_heads


def _head_dim(keys: _Keys, defaults: _Defaults, faults: list[str]) -> int:
    head_dim = keys.head_dim or defaults.head_dim
    if head_dim is None:
        head_dim, remainder = divmod(keys.hidden_size, keys.num_attention_heads)
        if remainder or not head_dim:
            faults.append(
                f"head_dim is missing, and hidden_size, {keys.hidden_size}, is not a multiple of "
                f"num_attention_heads, {keys.num_attention_heads}"
            )
    if keys.model_type in _FAMILIES and head_dim % 2:
        faults.append(f"head_dim is {head_dim}, but rotary embeddings turn pairs")
    return head_dim


def _experts(raw: Mapping[str, Any], path: Path, faults: list[str]) -> tuple[int, int]:
    keys = validated(_Experts, raw, path)
    if keys.num_experts_per_tok > keys.num_local_experts:
        faults.append(
            f"num_experts_per_tok is {keys.num_experts_per_tok}, more than num_local_experts, {keys.num_local_experts}"
        )
    return keys.num_local_experts, keys.num_experts_per_tok


def _rope(
    raw: Mapping[str, Any], path: Path, defaults: _Defaults, faults: list[str]
) -> tuple[float | None, dict[str, Any] | None]:
    """The rotary base and what else shapes the frequencies, of whichever of the three places say it.

    transformers 4.57 and 5 look in different places, so places that contradict each other are a fault.
    """
    places: dict[str, Any] = {place: raw.get(place) or {} for place in ("rope_parameters", "rope_scaling")}
    if any(isinstance(value, dict) for values in places.values() for value in values.values()):
        return raw.get("rope_theta"), None  # each type of layer has parameters of its own
    said = [(key, value, f"{place}.{key}") for place, values in places.items() for key, value in values.items()]
    said.append(("rope_theta", raw.get("rope_theta"), "rope_theta"))
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value, name in said:
        key = "rope_type" if key == "type" else key  # its name before transformers 4.43
        if value is None:
            continue
        if merged.setdefault(key, value) != value:
            faults.append(f"{origin[key]} is {shown(merged[key])}, but {name} is {shown(value)}")
        origin.setdefault(key, name)
    theta = validated(_RopeTheta, merged, path).rope_theta
    merged.pop("rope_theta", None)
    scaled = merged.get("rope_type", "default") != "default"
    return (defaults.rope_theta if theta is None else theta), (merged if scaled else None)


def _hint(raw: Mapping[str, Any]) -> str | None:
    """The likely reason why keys are missing."""
    if isinstance(raw.get("text_config"), dict):
        return "A model whose language part is described in text_config cannot be read."
    return None
