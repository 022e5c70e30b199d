"""Artifacts are made once and shared."""

from __future__ import annotations

import pytest

from tests.interop.artifacts import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where artifacts are made."""
    return Workshop(tmp_path_factory.mktemp("artifacts"))
