from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.plan.costs import BlockCost, held_samples, human

sizes = st.integers(0, 10**12)


@given(sizes, sizes, st.integers(1, 1000), st.integers(1, 64), sizes, sizes)
def test_what_is_held_fits(fixed: int, per_sample: int, samples: int, workers: int, resident: int, memory: int) -> None:
    """Held and running samples together never take more than there is; none is refused that would fit."""
    held = held_samples(BlockCost(fixed, per_sample, 0), samples, workers, resident, memory)
    base = fixed + resident
    if held is None:
        assert base + 2 * workers * max(1, per_sample) > memory
    elif held == samples:
        assert base + (samples + workers) * per_sample <= memory
    else:
        assert 0 <= held < samples
        assert base + (held + 2 * workers) * per_sample <= memory


def test_everything_is_held_where_memory_is_unknown() -> None:
    """A system that does not tell is trusted to have enough."""
    assert held_samples(BlockCost(10**15, 10**15, 0), 7, 2, 10**15, None) == 7


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (15_360_000, "15.4 MB"), (4.2e9, "4.2 GB"), (1.5e15, "1500.0 TB")],
)
def test_sizes_are_decimal(count: float, text: str) -> None:
    """As disks and the Hub count them."""
    assert human(count) == text
