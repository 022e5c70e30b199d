"""Models are written and converted once; and a run that proves nothing fails."""

from __future__ import annotations

import pytest

from tests.interop.auto_gptq.conftest import pytest_sessionfinish  # noqa: F401 - a hook: no test may be skipped
from tests.interop.litgpt.conversions import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where conversions are made."""
    return Workshop(tmp_path_factory.mktemp("conversions"))
