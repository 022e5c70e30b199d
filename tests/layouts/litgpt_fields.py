"""What model_config.yaml holds for a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llamaconv.layouts.description import Given, Native
from llamaconv.layouts.litgpt_config import fields_of
from llamaconv.tensors import TensorSpec
from tests.configs import config

__all__ = ["PATH", "SCALING", "native"]

PATH = Path("checkpoint/model_config.yaml")
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 64}


def native(family: str = "llama", tensors: int = 100, **changes: Any) -> Native:
    """A tiny model's fields with changes; ``...`` leaves one out."""
    fields = fields_of(config(model_type=family)) | changes
    kept = {field: value for field, value in fields.items() if value is not ...}
    specs = {f"{number}": TensorSpec(f"{number}", (5,), torch.float16) for number in range(tensors)}
    return Native(PATH, kept, specs, given=Given(tied=False))
