"""What the benchmarks of ``convert`` share: a random Llama in the proportions of Mistral 7B, and peaks of memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from common import Measured, alone

from llamaconv.config import parse_config
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.sinks.checkpoint import CheckpointWriter
from llamaconv.sinks.sharding import shard
from llamaconv.tensors import TensorSpec

__all__ = ["LARGEST_TENSOR", "convert", "random_llama", "size_of"]

_WIDTH, _VOCABULARY = 4096, 32_000
LARGEST_TENSOR = _VOCABULARY * _WIDTH * 2
"""Bytes of the embedding, in bfloat16; the head has as many."""

_FINITE = ~(1 << 14)  # without the highest bit of its exponent, a bfloat16 is below 2


def random_llama(directory: Path, layers: int, shard_size: int = 5_000_000_000) -> Path:
    """A checkpoint of random finite bits: 0.96 GB with one layer, 4.01 GB with eight.

    Args:
        directory: Made.
        layers: Of 0.44 GB each.
        shard_size: Bytes of a file at most.
    """
    directory.mkdir(parents=True)
    source = json.dumps(_config(layers), indent=2)
    (directory / "config.json").write_text(source)
    shapes = expected_tensors(parse_config(source.encode(), directory / "config.json"))
    assert shapes is not None
    specs = [TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()]
    writer = CheckpointWriter(directory, shard(specs, shard_size))
    generator = torch.Generator().manual_seed(0)
    for spec in specs:
        bits = torch.randint(-(1 << 15), 1 << 15, spec.shape, generator=generator, dtype=torch.int16)
        writer.write(spec.name, bits.bitwise_and_(_FINITE).view(torch.bfloat16))
    writer.finish()
    return directory


def convert(source: Path, out: Path, *arguments: str) -> Measured:
    """Run ``llamaconv convert`` of this checkout."""
    return alone(sys.executable, "-m", "llamaconv", "convert", source, out, *arguments, "-q")


def size_of(directory: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in directory.iterdir())


def _config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _WIDTH,
        "intermediate_size": 14_336,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 500_000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "torch_dtype": "bfloat16",
    }
