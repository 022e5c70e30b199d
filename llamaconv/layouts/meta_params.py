"""``params.json``: what Meta's releases say of a model (Llama 1, 2, 3 to 3.3, Code Llama).

Source: ``ModelArgs`` in meta-llama's llama, codellama and llama-models (``models/llama3/args.py``, ``model.py``), and
transformers ``models/llama/convert_llama_weights_to_hf.py`` for what the releases leave out.

**The factor of Llama 3's rotary scaling.** The releases do not carry it (see ``meta_generations``): a scaled model of a
width up to 3,072 is read with Llama 3.2's, a wider one with Llama 3.1's, and a note says so. Where that would read a
model back wrongly, the factor is written down under the name that it has in Llama 4's files, ``rope_scaling_factor``;
Meta's code for Llama 3 passes over keys that it does not know. A factor that neither generation has is an obstacle:
Meta's code would compute with its own, and nobody would notice.

**The rotary base.** The code of Llama 1 and 2 takes no ``rope_theta`` and computes with 10,000; Llama 3's takes 500,000
where there is none, and loads no vocabulary but its own. So the key is left out for a base of 10,000 with a vocabulary
of Llama 2's size, and only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from llamaconv.config import ModelConfig, Real, Size
from llamaconv.errors import UnsupportedError
from llamaconv.json_files import config_error, shown, validated
from llamaconv.layouts.description import Described, Native
from llamaconv.layouts.llama_config import (
    beyond_llama,
    layer_count,
    llama_config,
    matrices,
    require_agreement,
    stated,
)
from llamaconv.layouts.meta_generations import LLAMA_3_VOCABULARY, generation, usual_factor
from llamaconv.layouts.meta_mlp import mlp_factors, mlp_width

__all__ = ["described", "obstacles", "params_of"]

_SCALING: Mapping[str, float] = MappingProxyType(
    {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
)
"""What Meta's code takes for granted in Llama 3's rotary scaling, by transformers' names."""

_REFUSED = (
    *("moe", "moe_args", "vision_args", "vision_model", "vision_encoder"),
    *("vision_chunk_size", "vision_num_cross_attention_layers"),
    *("quantization", "quantization_args", "lora", "lora_args"),
    *("sliding_window", "attention_chunk_size", "attn_temperature_tuning", "nope_layer_interval"),
    *("use_qk_norm", "rope_high_freq_factor", "yarn"),
)
"""Keys that change the arithmetic, where they are switched on."""

_PASSED_OVER = frozenset(("max_batch_size", "max_seq_len", "model_parallel_size", "vision_max_num_chunks"))
"""How much memory a loader sets aside, and what means nothing without a key of ``_REFUSED``."""


def params_of(config: ModelConfig) -> dict[str, Any]:
    """The content of params.json for a model without obstacles; ``described`` reads it back.

    The longest sequence and the tie of the head are not in it: Meta's loader is told the one (and fails on a file that
    says it too), and Meta's files hold the head in any case.
    """
    multiple, multiplier = mlp_factors(config.hidden_size, config.intermediate_size)
    params: dict[str, Any] = {"dim": config.hidden_size, "n_layers": config.layers, "n_heads": config.heads}
    if config.kv_heads != config.heads:
        params["n_kv_heads"] = config.kv_heads
    params |= {"vocab_size": config.vocab_size, "multiple_of": multiple}
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    params["norm_eps"] = config.norm_eps
    if config.rope_theta != 10_000 or config.rope_scaling or config.vocab_size >= LLAMA_3_VOCABULARY:
        params["rope_theta"] = config.rope_theta
    if config.rope_scaling:
        params["use_scaled_rope"] = True
        if config.rope_scaling["factor"] != usual_factor(config.hidden_size):
            params["rope_scaling_factor"] = float(config.rope_scaling["factor"])
    return params


def obstacles(config: ModelConfig) -> list[str]:
    """What Meta's code cannot compute, one fact each with its value; empty if there is nothing."""
    return beyond_llama(config) + _scaling_obstacles(config.rope_scaling or {})


def _scaling_obstacles(scaling: Mapping[str, Any]) -> list[str]:
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return []
    if kind != "llama3":
        return [f"rope scaling of type {shown(kind)}"]
    facts = [
        f"rope scaling with {name} {shown(scaling.get(name))}; it takes {value:g} for granted"
        for name, value in _SCALING.items()
        if scaling.get(name) != value
    ]
    if scaling.get("factor") not in (8, 32):
        facts.append(f"rope scaling with factor {shown(scaling.get('factor'))}; it knows 8 and 32")
    if scaling.get("partial_rotary_factor") not in (1, None):
        partial = shown(scaling["partial_rotary_factor"])
        facts.append(f"rope scaling with partial_rotary_factor {partial}; it turns whole heads")
    return facts


class _Params(BaseModel):
    """params.json's keys that are looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")

    dim: Size
    n_layers: Size
    n_heads: Size
    n_kv_heads: Size | None = None
    head_dim: Size | None = None
    hidden_dim: Size | None = None
    vocab_size: Annotated[int, Field(ge=-1, le=10**15)] | None = None
    multiple_of: Size | None = None
    ffn_dim_multiplier: Annotated[float, Field(gt=0, le=1e18)] | None = None
    norm_eps: Real | None = None
    rope_theta: Real | None = None
    use_scaled_rope: bool | None = None
    rope_scaling_factor: Real | None = None


@dataclass(frozen=True)
class _Sizes:
    """What the tensors say of sizes."""

    kv_heads: int
    intermediate: int
    vocabulary: int


def described(native: Native) -> Described:
    """The config.json of a checkpoint in Meta's layout.

    Args:
        native: params.json's content (what counts may stand under ``model``) and the tensors of rank 0.

    Raises:
        ConfigError: Keys that are missing or cannot be, or contradict the tensors' shapes; all of a kind.
        UnsupportedError: Keys that change the arithmetic, all of them.
        CheckpointError: Tensors that sizes are read from are missing, or no matrices.
        UsageError: The user states something else than the files.
    """
    nested = native.fields.get("model")
    fields = nested if isinstance(nested, Mapping) else native.fields
    _refuse_extensions(native, fields)
    params = validated(_Params, fields, native.path)
    sizes = _sizes(params, native)
    _require_agreement(params, sizes, native)
    notes: list[str] = []
    tied = "output.weight" not in native.specs if native.given.tied is None else native.given.tied
    facts = {
        "hidden_size": params.dim,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": params.n_layers,
        "num_attention_heads": params.n_heads,
        "num_key_value_heads": sizes.kv_heads,
        "vocab_size": sizes.vocabulary,
        "tie_word_embeddings": tied,
        **_unsaid(params, sizes, native, notes),
    }
    unknown = sorted(fields.keys() - _Params.model_fields.keys() - _PASSED_OVER - set(_REFUSED))
    if unknown:
        notes.append(f"keys of {native.path.name} that mean nothing here are passed over: {shown(', '.join(unknown))}")
    return Described(llama_config(native.path, facts, native.specs), tuple(notes))


def _refuse_extensions(native: Native, fields: Mapping[str, Any]) -> None:
    # Meta's own values for what there is none of are null, false and -1.
    found = [key for key in _REFUSED if fields.get(key) and fields[key] != -1]
    if found:
        raise UnsupportedError(
            "\n".join(f"{native.path}: {key} is {shown(fields[key])}: no Llama computes with it." for key in found),
            hint="Only dense text models of Llama 1 to 3.3 and Code Llama can be read from Meta's layout.",
            file=str(native.path),
        )


def _sizes(params: _Params, native: Native) -> _Sizes:
    """The tensors' sizes, held against those that the parameters say.

    Raises:
        ConfigError: Each contradiction.
    """
    names = ("tok_embeddings.weight", "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight")
    embedding, keys, gate = matrices(native.path, native.specs, names)
    each = f" in each of {native.ranks} files" if native.ranks > 1 else ""
    faults: list[str] = []
    layers = layer_count(native.specs, "layers.", faults)
    if params.n_layers != layers:
        faults.append(f"n_layers is {params.n_layers}, but the weights have {layers} layers")
    # Until Llama 2 the ranks split the embedding's columns, from Llama 3 on its rows.
    if embedding[1] not in (params.dim, params.dim / native.ranks):
        faults.append(f"dim is {params.dim}, but {names[0]} is {list(embedding)}{each}")
    if keys[1] != params.dim:
        faults.append(f"dim is {params.dim}, but {names[1]} is {list(keys)}{each}")
    vocabulary = embedding[0] * (native.ranks if embedding[1] == params.dim else 1)
    if params.vocab_size not in (None, -1, vocabulary):
        faults.append(f"vocab_size is {params.vocab_size}, but {names[0]} is {list(embedding)}{each}")
    kv_heads = _kv_heads(params, keys[0] * native.ranks, native, faults)
    intermediate = gate[0] * native.ranks
    _check_width(params, intermediate, faults)
    if faults:
        raise config_error(native.path, faults, "It does not describe these weights.")
    return _Sizes(kv_heads, intermediate, vocabulary)


def _kv_heads(params: _Params, rows: int, native: Native, faults: list[str]) -> int:
    """Read off the rows of wk; 1 where a fault leaves no number."""
    head_dim, rest = divmod(params.dim, params.n_heads)
    if rest or head_dim % 2:
        faults.append(f"n_heads is {params.n_heads}, but dim, {params.dim}, is not that many heads of pairs")
        return 1
    if params.head_dim not in (None, head_dim):
        faults.append(f"head_dim is {params.head_dim}, but dim over n_heads is {head_dim}")
    frequencies = native.specs.get("rope.freqs")
    if frequencies is not None and frequencies.numel != head_dim // 2:
        faults.append(f"n_heads is {params.n_heads}, but rope.freqs is for heads of {2 * frequencies.numel}")
    kv_heads, rest = divmod(rows, head_dim)
    if params.n_kv_heads not in (None, kv_heads) or rest:
        faults.append(
            f"{'n_heads' if params.n_kv_heads is None else 'n_kv_heads'} is {params.n_kv_heads or params.n_heads}, "
            f"but the weights have {rows} rows of keys for heads of {head_dim}"
        )
        return 1
    if params.n_heads % kv_heads:
        faults.append(f"n_heads is {params.n_heads}, but the weights have {kv_heads} key-value heads")
    return kv_heads


def _check_width(params: _Params, rows: int, faults: list[str]) -> None:
    if params.hidden_dim not in (None, rows):
        faults.append(f"hidden_dim is {params.hidden_dim}, but the weights have an MLP of {rows}")
    if params.multiple_of is not None:
        width = mlp_width(params.dim, params.multiple_of, params.ffn_dim_multiplier)
        if width != rows:
            faults.append(
                f"multiple_of is {params.multiple_of} and ffn_dim_multiplier {shown(params.ffn_dim_multiplier)}, "
                f"which makes an MLP of {width}, but the weights have one of {rows}"
            )


def _require_agreement(params: _Params, sizes: _Sizes, native: Native) -> None:
    given = native.given
    require_agreement(
        native.path,
        {
            "--heads": (given.heads, params.n_heads),
            "--vocab-size": (given.vocab_size, sizes.vocabulary),
            "--norm-eps": (given.norm_eps, params.norm_eps),
            "--rope-theta": (given.rope_theta, params.rope_theta),
            # A factor of 1 is no scaling.
            "--rope-factor": (given.rope_factor, params.rope_scaling_factor if params.use_scaled_rope else 1),
        },
    )


def _unsaid(params: _Params, sizes: _Sizes, native: Native, notes: list[str]) -> dict[str, Any]:
    """What releases leave out: said all the same, stated by the user, or as the generation has it."""
    given, scaled = native.given, bool(params.use_scaled_rope)
    usual = generation(
        width=params.dim,
        grouped=sizes.kv_heads < params.n_heads,
        vocabulary=sizes.vocabulary,
        rope_theta=params.rope_theta,
        norm_eps=params.norm_eps,
        scaled=scaled,
    )
    like = f"{usual.name} has it"
    notes.append(
        f"the tokens of begin and end are {usual.bos} and {usual.eos}, as {usual.name}'s base models have them"
    )
    facts: dict[str, Any] = {
        "bos_token_id": usual.bos,
        "eos_token_id": usual.eos,
        "max_position_embeddings": stated(
            given.max_positions, usual.max_positions, "the longest sequence", like, "--max-positions", notes
        ),
        "rms_norm_eps": stated(
            params.norm_eps or given.norm_eps, 1e-5, "norm_eps", "Meta's code takes it", "--norm-eps", notes
        ),
        "rope_theta": stated(
            params.rope_theta or given.rope_theta, usual.rope_theta, "rope_theta", like, "--rope-theta", notes
        ),
    }
    if scaled:
        said = params.rope_scaling_factor or given.rope_factor
        name = "the factor of the rope scaling"
        factor = stated(said, usual_factor(params.dim), name, like, "--rope-factor", notes)
        facts["rope_scaling"] = {"rope_type": "llama3", "factor": factor, **_SCALING}
    return facts
