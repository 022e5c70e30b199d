"""The bundled model and something to calibrate it on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import llamaconv

MODEL = Path(llamaconv.__file__).parent / "demo" / "model"
"""A trained Llama: 4 layers, 256 wide, 1024 tokens."""


def write_tokens(path: Path, samples: int = 6, length: int = 40) -> Path:
    """Write random token ids, [samples, length]."""
    np.save(path, np.random.default_rng(0).integers(3, 1024, (samples, length), dtype=np.int32))
    return path
