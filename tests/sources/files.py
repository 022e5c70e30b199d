"""Safetensors files, also byte by byte so that tests can make broken ones; tensors of any dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llamaconv.tensors import TensorSpec

INDEX = "model.safetensors.index.json"


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a length, a header (bytes as they are, anything else as JSON) and data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """One tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_index(path: Path, weight_map: dict[str, str]) -> Path:
    """Write an index.json."""
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return path


def save(path: Path, *names: str) -> Path:
    """One file with a tensor of its own value per name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.full((2,), float(len(name))) for name in names}, path)
    return path


def sharded(directory: Path) -> Path:
    """Two shards with an index; the index's order is not the shards'."""
    save(directory / "model-00001-of-00002.safetensors", "b", "aa")
    save(directory / "model-00002-of-00002.safetensors", "ccc")
    weights = {"aa": "model-00001-of-00002.safetensors", "ccc": "model-00002-of-00002.safetensors"}
    write_index(directory / INDEX, {**weights, "b": "model-00001-of-00002.safetensors"})
    return directory


def bits(tensor: Tensor) -> bytes:
    """The tensor's own memory, whatever its dtype; NaN equals NaN this way."""
    # Not contiguous(): it leaves odd strides along an axis of one as they are.
    plain = tensor.clone(memory_format=torch.contiguous_format)
    return plain.view(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Any bits at all, but for booleans, which are 0 or 1."""
    spec = TensorSpec("", shape, dtype)
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype is torch.bool else 256
    raw = torch.randint(0, high, (spec.nbytes,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)
