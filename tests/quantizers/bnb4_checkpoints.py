"""Checkpoints of NF4 and FP4 as transformers saves them, and single weights as bitsandbytes does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import quantize_4bit
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

__all__ = ["saved_by_bitsandbytes", "state_of", "with_state", "write_bnb4"]


def write_bnb4(source: Path, out: Path, kind: str = "nf4", nested: bool = False, storage: str = "uint8") -> Path:
    """Quantize the dense checkpoint ``source`` with transformers and save it."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_quant_storage=storage,
    )
    AutoModelForCausalLM.from_pretrained(source, quantization_config=settings).save_pretrained(out)
    return out


def saved_by_bitsandbytes(weight: Tensor, **settings: Any) -> dict[str, Tensor]:
    """A layer's tensors by suffix; ``settings`` as ``quantize_4bit`` takes them."""
    codes, state = quantize_4bit(weight, **settings)
    return {"weight": codes, **{f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}}


def state_of(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """The suffix of the quant_state among a layer's tensors, and what it says."""
    [suffix] = [suffix for suffix in tensors if suffix.startswith("weight.quant_state.")]
    return suffix, json.loads(bytes(tensors[suffix].tolist()))


def with_state(tensors: dict[str, Tensor], state: bytes | dict[str, Any]) -> dict[str, Tensor]:
    """A layer's tensors with another quant_state."""
    data = state if isinstance(state, bytes) else json.dumps(state).encode()
    return tensors | {state_of(tensors)[0]: torch.tensor(list(data), dtype=torch.uint8)}
