from __future__ import annotations

import pytest

from llamaconv.cli.tables import amount, duration, number, percent, plural, size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (768, "768 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (4_190_000, "4.19 MB"),
        (999_999, "1 MB"),
        (140_000_000_000, "140 GB"),
        (1.5e12, "1.5 TB"),
        (5e15, "5,000 TB"),
    ],
)
def test_sizes_are_decimal(count: float, words: str) -> None:
    """Three digits and a unit of a thousand times the one before."""
    assert size(count) == words


@pytest.mark.parametrize(("count", "words"), [(512, "512"), (2_885_888, "2.89 M"), (7e9, "7 B")])
def test_parameters_are_counted_as_usual(count: int, words: str) -> None:
    """Millions are M, billions are B."""
    assert amount(count) == words


@pytest.mark.parametrize(("share", "words"), [(1.0, "100 %"), (0.99997, "99.997 %"), (0.5, "50 %"), (None, "-")])
def test_all_is_all(share: float | None, words: str) -> None:
    """Nearly all is not shown as all."""
    assert percent(share) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.00364012, "0.003640"), (46.62, "46.62"), (1e-9, "1.000e-09"), (None, "-"), (12345, "12345")]
)
def test_figures_have_significant_digits(value: float | None, words: str) -> None:
    """As many as asked for, trailing zeros too."""
    assert number(value, 5 if value == 12345 else 4) == words


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (3723, "1:02:03")])
def test_durations_are_clocks(seconds: float, words: str) -> None:
    """Minutes and seconds, and hours where there are any."""
    assert duration(seconds) == words


def test_nouns_agree() -> None:
    """One shard, two shards."""
    assert [plural(count, "shard") for count in (0, 1, 2, 1500)] == ["0 shards", "1 shard", "2 shards", "1,500 shards"]
