"""Tiny real checkpoints, written by transformers, in which no two dimensions are equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

__all__ = [
    "FAMILIES",
    "LENGTH",
    "load_weights",
    "patch_config",
    "random_tokens",
    "reference",
    "reference_logits",
    "save_weights",
    "write_model",
    "write_tokenizer",
]

# At this size, threads that wait for each other cost more than they save.
torch.set_num_threads(1)

LENGTH = 160
"""Longer than any sliding window here, and far enough that a wrong rotary base shows."""

_COMMON: Mapping[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 288,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 25000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
_OWN: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"head_dim": ...},  # it has none of its own: the heads share the hidden size
    "qwen3": {"attention_bias": True},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    # Eager attention, soft-capped logits, scaled embeddings, sliding and full attention by turns.
    "gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 32},
    # Sliding and full attention with a rotary base for each.
    "gemma3_text": {
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": ...,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 25000.0},
        },
    },
    # Blocks that return tuples, position by attention biases.
    "bloom": {"n_layer": 3, "n_head": 6},
    # Position embeddings before the blocks.
    "opt": {"ffn_dim": 160, "word_embed_proj_dim": 96},
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""The families with a table of tensor names, but for Mixtral, which is converted only."""


def write_model(
    directory: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    rope: str = "both",
    max_shard_size: str = "5GB",
    **changes: Any,
) -> Path:
    """Save a model with random weights, biases and norms; no tensor is left at its initial zeros or ones.

    Args:
        directory: Where to; it is made.
        family: A ``model_type``.
        dtype: Of the tensors.
        seed: Of the weights.
        rope: The base as transformers 5 writes it ("parameters"), as 4.57 does ("theta"), or "both".
        max_shard_size: As ``save_pretrained`` takes it.
        changes: To the config; ``...`` leaves a key out.
    """
    settings = {key: value for key, value in (_COMMON | _OWN[family] | changes).items() if value is not ...}
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(noise * 0.1 + (parameter.mean() > 0.5))
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    if family in (*FAMILIES, "mixtral"):
        _write_rope(directory, rope, float(settings["rope_theta"]))
    return directory


def _write_rope(directory: Path, rope: str, theta: float) -> None:
    raw = json.loads((directory / "config.json").read_text())
    parameters = raw.pop("rope_parameters", None) or {"rope_type": "default"}
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    raw.pop("rope_theta", None)
    if rope in ("theta", "both"):
        raw["rope_theta"] = theta
        raw["rope_scaling"] = scaling if scaling["rope_type"] != "default" else None
    if rope in ("parameters", "both"):
        raw["rope_parameters"] = scaling | {"rope_theta": theta}
    (directory / "config.json").write_text(json.dumps(raw, indent=2))


def patch_config(directory: Path, **changes: Any) -> Path:
    """Change keys of config.json; ``...`` removes one."""
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}, indent=2))
    return directory


def load_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }


def save_weights(directory: Path, **changes: Tensor | None) -> Path:
    """Change tensors of a single-file checkpoint by name; None removes one."""
    tensors = load_weights(directory) | changes
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    return directory


def write_tokenizer(directory: Path) -> Path:
    """A tokenizer of bytes: ids 0 to 255, BOS 256 before each sequence, EOS 257; with a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 256)])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    whole.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    whole.save_pretrained(directory)
    return directory


def random_tokens(samples: int, length: int = LENGTH, seed: int = 0, vocab: int = 288) -> list[Tensor]:
    """Sequences [length] of random ids."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(vocab, (samples, length), generator=generator, dtype=torch.int32))


def reference(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint as transformers loads it; every tensor must find its place."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def reference_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """[L, V] for tokens [L]."""
    with torch.inference_mode():
        return model(input_ids=tokens.long()[None], use_cache=False).logits[0]
