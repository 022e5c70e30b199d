"""Forward passes written from what Meta's and lit-llama's own files mean, to judge what is written into them.

Sources: meta-llama's llama-models ``models/llama3/model.py``, lit-llama ``lit_llama/model.py``, and for the rotary
embedding arXiv 2104.09864, section 3.2.2. Nothing here looks at a rule, a config.json or a Hugging Face name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["lit_llama_logits", "meta_logits"]

_EPSILON = 1e-5


def meta_logits(tensors: Mapping[str, Tensor], params: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """[L, V] in float32 for tokens [L], as Meta's code computes with one file and its params.json.

    Its code knows one factor of the rotary scaling: 8.
    """
    heads = params["n_heads"]
    kv_heads = params.get("n_kv_heads") or heads
    frequencies = _frequencies(params["dim"] // heads, params.get("rope_theta", 10_000.0))
    if params.get("use_scaled_rope"):
        frequencies = _scaled(frequencies)
    turns = _turns(frequencies, len(tokens))
    x = tensors["tok_embeddings.weight"].float()[tokens]
    for layer in range(params["n_layers"]):
        weight = {
            name.removeprefix(f"layers.{layer}."): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith(f"layers.{layer}.")
        }
        h = _normed(x, weight["attention_norm.weight"], params["norm_eps"])
        queries, keys, values = (h @ weight[f"attention.w{part}.weight"].T for part in "qkv")
        x = x + _attention(queries, keys, values, heads, kv_heads, turns) @ weight["attention.wo.weight"].T
        h = _normed(x, weight["ffn_norm.weight"], params["norm_eps"])
        gate, down, up = (weight[f"feed_forward.w{number}.weight"] for number in (1, 2, 3))
        x = x + (silu(h @ gate.T) * (h @ up.T)) @ down.T
    return _normed(x, tensors["norm.weight"], params["norm_eps"]) @ tensors["output.weight"].float().T


def lit_llama_logits(tensors: Mapping[str, Tensor], heads: int, tokens: Tensor) -> Tensor:
    """[L, V] in float32 for tokens [L], padding of the vocabulary included."""
    embedding = tensors["transformer.wte.weight"].float()
    turns = _turns(_frequencies(embedding.shape[1] // heads, 10_000.0), len(tokens))
    x = embedding[tokens]
    layers = sum(name.endswith(".attn.c_attn.weight") for name in tensors)
    for layer in range(layers):
        block = f"transformer.h.{layer}."
        h = _normed(x, tensors[f"{block}rms_1.scale"], _EPSILON)
        queries, keys, values = (h @ tensors[f"{block}attn.c_attn.weight"].float().T).chunk(3, dim=1)
        attended = _attention(queries, keys, values, heads, heads, turns)
        x = x + attended @ tensors[f"{block}attn.c_proj.weight"].float().T
        h = _normed(x, tensors[f"{block}rms_2.scale"], _EPSILON)
        gate, up, down = (tensors[f"{block}mlp.{part}.weight"].float() for part in ("c_fc1", "c_fc2", "c_proj"))
        x = x + (silu(h @ gate.T) * (h @ up.T)) @ down.T
    return _normed(x, tensors["transformer.ln_f.scale"], _EPSILON) @ tensors["lm_head.weight"].float().T


def _normed(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * scale.float()


def _frequencies(head_dim: int, base: float) -> Tensor:
    """[d/2] radians per position."""
    return base ** (-torch.arange(0, head_dim, 2).float() / head_dim)


def _scaled(frequencies: Tensor) -> Tensor:
    """Llama 3.1's: waves longer than 8,192 positions take 8 times as long, shorter than a quarter of that stay."""
    turns = 8192 * frequencies / (2 * math.pi)
    kept = ((turns - 1) / (4 - 1)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / 8)


def _turns(frequencies: Tensor, length: int) -> Tensor:
    """[L, 1, d/2] numbers on the unit circle."""
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """[L, n, d], neighbours in pairs as complex numbers."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int, kv_heads: int, turns: Tensor) -> Tensor:
    """[L, heads * d]; each key-value head serves heads / kv_heads neighbouring heads."""
    q = _rotated(queries.unflatten(-1, (heads, -1)), turns)
    k = _rotated(keys.unflatten(-1, (kv_heads, -1)), turns).repeat_interleave(heads // kv_heads, dim=1)
    v = values.unflatten(-1, (kv_heads, -1)).repeat_interleave(heads // kv_heads, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -math.inf).softmax(-1), v).flatten(1)
