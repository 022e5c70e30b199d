"""A quantized Llama that lit-llama can hold, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Checkpoint
from tests.tasks.conversions import PACKED, WHOLE, to
from tests.tasks.runs import run

Quantized = Callable[..., Path]


@pytest.fixture(scope="session")
def quantized_llama(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """A Llama 1 quantized as told, once. Not to be written to."""
    made: dict[str, Path] = {}

    def find(dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
        key = repr((dtype, sorted(settings.items())))
        if key not in made:
            made[key] = run(checkpoint(dtype=dtype, **PACKED), tmp_path_factory.mktemp("q") / "out", **settings).out
        return made[key]

    return find


@pytest.fixture(scope="session")
def lit_llama_codes(quantized_llama: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same at 4 bits, for lit-llama."""
    return to("lit-llama", quantized_llama(**WHOLE), tmp_path_factory.mktemp("lit") / "out").out
