"""``model_config.yaml`` read back: a config.json that says what litgpt would compute.

Source: litgpt 0.5.13 ``model.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llamaconv.config import parse_config, with_both_rope_forms
from llamaconv.errors import UnsupportedError
from llamaconv.json_files import shown
from llamaconv.layouts.description import Described, Native
from llamaconv.layouts.litgpt_config import LLAMA_3_SCALING, is_mistral
from llamaconv.layouts.litgpt_fields import Adjustments, Fields, fields_in
from llamaconv.layouts.llama_config import dtype_keys, require_agreement

__all__ = ["described"]

_ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "mixtral": "MixtralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }
)

_ONLY: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "norm_class_name": ("RMSNorm",),
        "norm_qk_type": ("default",),
        "post_attention_norm": (False,),
        "post_mlp_norm": (False,),
        "parallel_residual": (False,),
        "shared_attention_norm": (False,),
        "norm_1": (True,),
        "norm_2": (True,),
        "mlp_class_name": ("LLaMAMLP", "LLaMAMoE"),
        "attention_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "rope_interleave": (False,),
        "rope_local_base_freq": (None,),
        "scale_embeddings": (False,),
        "lm_head_bias": (False,),
        "latent_attention": (None,),
        "n_shared_expert": (None, 0),
        "n_expert_groups": (None, 0),
        "first_k_dense_replace": (None, 0),
        "routed_scaling_factor": (1,),
    }
)
"""What fields that change the arithmetic may be, where they are there."""

_IDLE = frozenset(
    ("hf_config", "gelu_approximate", "rope_indices", "n_topk_groups", "n_topk_scores_per_group", "norm_topk_prob")
)
"""Fields of 0.5.13 that mean nothing to the arithmetic that is left."""


def described(native: Native) -> Described:
    """The model that model_config.yaml describes, as config.json.

    Raises:
        ConfigError: Fields that are missing or cannot be, all of them.
        UnsupportedError: Arithmetic that no known family has, each fact.
        UsageError: Options that say something else.
    """
    fields = fields_in(native)
    _refuse_other_arithmetic(native, fields)
    scaling = _rope_scaling(fields)
    _require_agreement(native, fields, scaling)
    notes: list[str] = []
    family = _family(fields)
    raw = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": fields.n_embd,
        "intermediate_size": fields.intermediate,
        "num_hidden_layers": fields.n_layer,
        "num_attention_heads": fields.n_head,
        "num_key_value_heads": fields.kv_heads,
        "head_dim": fields.head_dim,
        "vocab_size": fields.vocabulary,
        "max_position_embeddings": fields.block_size,
        "rms_norm_eps": fields.norm_eps,
        "rope_theta": fields.rope_base,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        **_switches(family, fields),
        **_window(family, fields, native, notes),
        **_unsaid(family, fields, native, notes),
        **dtype_keys(native.specs),
    }
    unknown = sorted(native.fields.keys() - Fields.model_fields.keys() - _ONLY.keys() - _IDLE)
    if unknown:
        notes.append(f"fields of {native.path.name} that are not known are passed over: {shown(', '.join(unknown))}")
    config = parse_config(json.dumps(raw).encode(), native.path)
    return Described(with_both_rope_forms(config), tuple(notes))


def _refuse_other_arithmetic(native: Native, fields: Fields) -> None:
    facts = [
        f"{field} is {shown(native.fields[field])}"
        for field, values in _ONLY.items()
        if field in native.fields and native.fields[field] not in values
    ]
    if "Gemma" in fields.name:
        facts.append(f"name is {shown(fields.name)}, for which litgpt adds 1 to the weights of norms")
    if int(fields.rotary_percentage * fields.head_dim) != fields.head_dim:
        facts.append(f"rotary_percentage is {shown(fields.rotary_percentage)}")
    if fields.attention_scores_scalar not in (None, fields.head_dim):
        facts.append(f"attention_scores_scalar is {fields.attention_scores_scalar}, head_size {fields.head_dim}")
    facts += _combinations(fields) + _rope_facts(fields)
    if facts:
        raise UnsupportedError(
            "\n".join(f"{native.path}: {fact}: no family that can be converted computes so." for fact in facts),
            hint="Only Llama, Mistral, Mixtral, Qwen2 and Qwen3 can be read from litgpt's layout.",
            file=str(native.path),
        )


def _combinations(fields: Fields) -> list[str]:
    """What some family has, but none has together."""
    facts = []
    biases = [name for name in ("bias", "attn_bias") if getattr(fields, name)]
    norms = ["norm_qk"] if fields.norm_qk else []
    if fields.is_mixture and norms + biases:
        facts.append(f"LLaMAMoE with {' and '.join(norms + biases)}")
    elif norms and biases:
        facts.append(f"norm_qk with {' and '.join(biases)}")
    if fields.windows and fields.bias:
        facts.append("sliding_window_size with bias")
    if not all(fields.windows) and _family(fields) not in ("qwen2", "qwen3"):
        facts.append(f"sliding_window_indices is {shown(fields.sliding_window_indices)}")
    return facts


def _rope_facts(fields: Fields) -> list[str]:
    adjustments = fields.rope_adjustments or Adjustments()
    yarn = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    values = {name: getattr(adjustments, name) for name in yarn}
    facts = [f"rope_adjustments.{name} is {shown(value)}" for name, value in values.items() if value is not None]
    if adjustments.is_llama_3 and fields.rope_condense_ratio != 1:
        facts.append(f"rope_condense_ratio is {shown(fields.rope_condense_ratio)} beside Llama 3's rope_adjustments")
    return facts


def _require_agreement(native: Native, fields: Fields, scaling: Mapping[str, Any] | None) -> None:
    given = native.given
    require_agreement(
        native.path,
        {
            "--heads": (given.heads, fields.n_head),
            "--vocab-size": (given.vocab_size, fields.vocabulary),
            "--max-positions": (given.max_positions, fields.block_size),
            "--norm-eps": (given.norm_eps, fields.norm_eps),
            "--rope-theta": (given.rope_theta, fields.rope_base),
            # A factor of 1 is no scaling.
            "--rope-factor": (given.rope_factor, 1 if scaling is None else scaling["factor"]),
        },
    )


def _family(fields: Fields) -> str:
    if fields.is_mixture:
        return "mixtral"
    if fields.norm_qk:
        return "qwen3"
    if fields.bias:
        return "llama"
    if fields.attn_bias:
        return "qwen2"
    return "mistral" if fields.windows or is_mistral(fields.name) else "llama"


def _rope_scaling(fields: Fields) -> dict[str, Any] | None:
    adjustments = fields.rope_adjustments or Adjustments()
    if adjustments.is_llama_3:
        return {"rope_type": "llama3"} | {key: getattr(adjustments, name) for key, name in LLAMA_3_SCALING.items()}
    factor = (adjustments.factor or 1.0) * fields.rope_condense_ratio
    return None if factor == 1 else {"rope_type": "linear", "factor": factor}


def _switches(family: str, fields: Fields) -> dict[str, Any]:
    match family:
        case "llama":
            return {"attention_bias": fields.bias, "mlp_bias": fields.bias}
        case "mixtral":
            return {"num_local_experts": fields.n_expert, "num_experts_per_tok": fields.n_expert_per_token}
        case "qwen3":
            return {"attention_bias": False}
    return {}


def _window(family: str, fields: Fields, native: Native, notes: list[str]) -> dict[str, Any]:
    if family == "llama":
        return {}
    size = fields.sliding_window_size if fields.windows else None
    if family in ("mistral", "mixtral"):
        if "sliding_window_size" not in native.fields:
            notes.append(f"there is no sliding window; {native.path.name} was written before litgpt knew of any")
        return {"sliding_window": size}
    switches = {"use_sliding_window": size is not None, "sliding_window": size}
    if size is None:
        return switches
    types = ["sliding_attention" if slides else "full_attention" for slides in fields.windows]
    return switches | {"max_window_layers": types.index("sliding_attention"), "layer_types": types}


def _unsaid(family: str, fields: Fields, native: Native, notes: list[str]) -> dict[str, Any]:
    if native.given.tied is None:
        notes.append(f"the head is taken for one of its own; {native.path.name} does not say")
    bos, eos, like = _tokens(family, fields.vocabulary)
    if bos is None:
        notes.append(f"the tokens of begin and end are left open; {native.path.name} does not say")
    else:
        notes.append(f"the tokens of begin and end are {bos} and {eos}, as in {like}'s base models")
    return {"tie_word_embeddings": bool(native.given.tied), "bos_token_id": bos, "eos_token_id": eos}


def _tokens(family: str, vocabulary: int) -> tuple[int | None, int | None, str]:
    """BOS, EOS, and whose they are."""
    if family in ("qwen2", "qwen3"):
        return (151_643, 151_643, "Qwen") if vocabulary > 151_643 else (None, None, "Qwen")
    if family == "llama":
        return (128_000, 128_001, "Llama 3") if vocabulary == 128_256 else (1, 2, "Llama 2")
    return 1, 2, family.capitalize()
