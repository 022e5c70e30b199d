"""Quantizing tiny models: few tokens, groups that divide every width."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamaconv.progress import Report, silent
from llamaconv.tasks.quantize import QuantizeResult, QuantizeSettings, quantize
from tests.models import random_tokens

__all__ = ["LAYERS", "digests", "run", "settings_for", "write_tokens"]

LAYERS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def write_tokens(path: Path, samples: int = 8, length: int = 64, seed: int = 5) -> Path:
    """Random tokens as a .npy file."""
    np.save(path, torch.stack(random_tokens(samples, length, seed)).numpy())
    return path


def settings_for(mode: str, calibration: Path | None, **settings: Any) -> QuantizeSettings:
    """Groups of 32 and one thread, if not told otherwise."""
    tokens = None if calibration is None else str(calibration)
    return QuantizeSettings(mode, **{"group_size": 32, "threads": 1, "calibration": tokens, **settings})


def run(
    source: Path,
    out: Path,
    mode: str = "gptq.int4",
    calibration: Path | None = None,
    report: Report = silent,
    **settings: Any,
) -> QuantizeResult:
    """Quantize; calibrated on ``calibration``, or on eight sequences written beside ``out``."""
    if calibration is None:
        calibration = out.parent / "tokens.npy"
        if not calibration.exists():
            write_tokens(calibration)
    return quantize(source, out, settings_for(mode, calibration, **settings), report)


def digests(directory: Path) -> dict[str, str]:
    """sha256 of every file, by its path inside the directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
