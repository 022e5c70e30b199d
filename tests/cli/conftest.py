from __future__ import annotations

from collections.abc import Iterator

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from tests.cli.models import MODEL


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A Hub on loopback that has the bundled model as ``org/tiny``, at ``main`` and ``v1``."""
    with Hub([Repository.of_directory("org/tiny", MODEL, revisions=("main", "v1"))]) as hub:
        yield hub
