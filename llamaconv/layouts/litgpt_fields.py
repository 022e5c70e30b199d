"""The fields of ``model_config.yaml`` as litgpt takes them, checked against each other.

Source: litgpt 0.5.13 ``config.py`` (``Config``, ``Config.__post_init__``). A field that is not there has litgpt's
default, except for those that every version has written and whose default belongs to another architecture.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaconv.config import Real, Size
from llamaconv.json_files import config_error, validated
from llamaconv.layouts.description import Native

__all__ = ["Adjustments", "Fields", "fields_in"]

_Count = Annotated[int, Field(ge=0)]


class Adjustments(BaseModel):
    """``rope_adjustments``; which of them are there says what kind of scaling it is."""

    model_config = ConfigDict(strict=True, extra="ignore")

    factor: Real | None = None
    low_freq_factor: Real | None = None
    high_freq_factor: Real | None = None
    original_max_seq_len: Size | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    @property
    def is_llama_3(self) -> bool:
        return self.low_freq_factor is not None or self.high_freq_factor is not None


class Fields(BaseModel):
    """The fields that are looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str = ""
    block_size: Size
    n_layer: Size
    n_embd: Size
    n_head: Size
    head_size: Size | None = None
    n_query_groups: Size | None = None
    vocab_size: Size
    padding_multiple: Size = 512
    padded_vocab_size: Size | None = None
    intermediate_size: Size | None = None
    moe_intermediate_size: Size | None = None
    mlp_class_name: Literal["GptNeoxMLP", "LLaMAMLP", "GemmaMLP", "LLaMAMoE"]
    norm_class_name: Literal["LayerNorm", "RMSNorm"]
    norm_eps: Real = 1e-5
    norm_qk: bool = False
    parallel_residual: bool
    bias: bool
    attn_bias: bool = False
    attention_scores_scalar: Size | None = None
    sliding_window_size: Size | None = None
    sliding_window_indices: list[Annotated[int, Field(ge=0, le=1)]] | None = None
    rotary_percentage: Real
    rope_base: Real = 10_000.0
    rope_condense_ratio: Real = 1.0
    rope_adjustments: Adjustments | None = None
    n_expert: _Count = 0
    n_expert_per_token: _Count = 0

    @property
    def is_mixture(self) -> bool:
        return self.mlp_class_name == "LLaMAMoE"

    @property
    def head_dim(self) -> int:
        return self.head_size or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_query_groups or self.n_head

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, those that pad it among them."""
        return self.padded_vocab_size or -(-self.vocab_size // self.padding_multiple) * self.padding_multiple

    @property
    def intermediate(self) -> int:
        """Width of the MLP, or of each expert's."""
        own = self.moe_intermediate_size if self.is_mixture else None
        return own or self.intermediate_size or 4 * self.n_embd

    @property
    def windows(self) -> list[int]:
        """For each layer, whether it has a sliding window; empty if none has."""
        if self.sliding_window_size is None:
            return []
        indices = [1] * self.n_layer if self.sliding_window_indices is None else self.sliding_window_indices
        return indices[: self.n_layer] if any(indices[: self.n_layer]) else []


def fields_in(native: Native) -> Fields:
    """What model_config.yaml says.

    Raises:
        ConfigError: Fields that are missing or cannot be, alone or together; no more layers and experts are believed
            than there are tensors.
    """
    fields = validated(Fields, native.fields, native.path)
    faults = _faults(fields, len(native.specs))
    if faults:
        raise config_error(native.path, faults)
    return fields


def _faults(fields: Fields, tensors: int) -> list[str]:
    faults = []
    if fields.n_layer > tensors:
        faults.append(f"n_layer is {fields.n_layer}, but the weights have {tensors} tensors")
    if fields.head_size is None and fields.n_embd % fields.n_head:
        faults.append(
            f"head_size is missing, and n_embd, {fields.n_embd}, is not a multiple of n_head, {fields.n_head}"
        )
    elif fields.head_dim % 2:
        faults.append(f"head_size is {fields.head_dim}, but rotary embeddings turn pairs")
    if fields.n_head % fields.kv_heads:
        faults.append(f"n_head is {fields.n_head}, not a multiple of n_query_groups, {fields.kv_heads}")
    if fields.mlp_class_name == "LLaMAMLP" and fields.intermediate_size is None:
        faults.append("intermediate_size is missing")
    indices = fields.sliding_window_indices
    if fields.sliding_window_size is not None and indices is not None and len(indices) < fields.n_layer:
        faults.append(f"sliding_window_indices are {len(indices)}, but n_layer is {fields.n_layer}")
    if fields.is_mixture:
        if fields.n_expert * fields.n_layer > tensors:
            faults.append(f"n_expert is {fields.n_expert}, but the weights have {tensors} tensors")
        if not 0 < fields.n_expert_per_token <= fields.n_expert:
            faults.append(f"n_expert_per_token is {fields.n_expert_per_token}, but n_expert is {fields.n_expert}")
    return faults + _adjustment_faults(fields.rope_adjustments or Adjustments())


def _adjustment_faults(adjustments: Adjustments) -> list[str]:
    if not adjustments.is_llama_3:
        return []
    parameters = ("factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")
    missing = [name for name in parameters if getattr(adjustments, name) is None]
    return [f"rope_adjustments.{name} is missing" for name in missing]
