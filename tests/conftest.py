"""Checkpoints that many tests read and none changes, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Kernels are compiled on first use, and machines are shared: how long one example takes says nothing.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

Checkpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """``write_model`` with its arguments, remembered; with a tokenizer. Not to be written to: copy it first."""
    from tests.models import write_model, write_tokenizer

    written: dict[str, Path] = {}

    def find(family: str = "llama", **settings: Any) -> Path:
        key = repr((family, sorted(settings.items())))
        if key not in written:
            written[key] = write_tokenizer(write_model(tmp_path_factory.mktemp(family) / "model", family, **settings))
        return written[key]

    return find
