from __future__ import annotations

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.cli.options import PATH, FiniteRange, device, group_size, size, text


@pytest.mark.parametrize(
    ("given_text", "count"),
    [
        ("5GB", 5_000_000_000),
        ("5gb", 5_000_000_000),
        ("1.5 G", 1_500_000_000),
        ("500MB", 500_000_000),
        ("512MiB", 536_870_912),
        ("2KiB", 2048),
        ("1T", 1_000_000_000_000),
        ("100", 100),
        ("100B", 100),
        ("2.3GB", 2_300_000_000),
    ],
)
def test_sizes_have_units(given_text: str, count: int) -> None:
    """Decimal units, binary ones with an i, and plain bytes; a decimal fraction is exact."""
    assert size(given_text) == count


@given(st.integers(1, 10**15))
def test_bytes_are_themselves(count: int) -> None:
    """A number without a unit is that many bytes."""
    assert size(str(count)) == count


@pytest.mark.parametrize(
    "given_text", ["", "GB", "5XB", "-5GB", "5GB5", "nan", "inf", "1e9", "٥GB", "0", "0.4", "5 000"]
)
def test_what_is_no_size_is_refused(given_text: str) -> None:
    """Anything else, and less than a byte."""
    with pytest.raises(click.BadParameter):
        size(given_text)


@pytest.mark.parametrize(("given_text", "columns"), [("128", 128), ("-1", -1), ("1", 1)])
def test_group_sizes_are_positive_or_minus_one(given_text: str, columns: int) -> None:
    """-1 is a group of all columns."""
    assert group_size(given_text) == columns


@pytest.mark.parametrize(
    ("given_text", "message"),
    [
        ("0", "0 is neither positive nor -1."),
        ("-2", "-2 is neither positive nor -1."),
        ("many", "'many' is not a valid integer."),
    ],
)
def test_other_group_sizes_are_refused(given_text: str, message: str) -> None:
    """Nothing else is a group."""
    with pytest.raises(click.BadParameter) as caught:
        group_size(given_text)
    assert caught.value.message == message


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_are_known_by_name(name: str) -> None:
    """The names that torch has for them, and auto."""
    assert device(name) == name


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "meta", "cpu:0"])
def test_other_devices_are_refused(name: str) -> None:
    """meta would compute nothing."""
    with pytest.raises(click.BadParameter):
        device(name)


@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "-inf", "1e999", "2", "-0.1", "x"])
def test_numbers_are_finite_and_in_range(number: str) -> None:
    """NaN passes every comparison, and so would every gate."""
    with pytest.raises(click.BadParameter):
        FiniteRange(0, 1).convert(number, None, None)


def test_empty_values_are_refused() -> None:
    """An unset shell variable is not the current directory."""
    with pytest.raises(click.BadParameter, match="The path is empty"):
        PATH.convert("", None, None)
    with pytest.raises(click.BadParameter, match="The value is empty"):
        text("")
    assert PATH.convert("a/b", None, None) == Path("a/b")


@pytest.mark.parametrize("given_text", ["hf://org/name", "HF://name@v1"])
def test_a_repository_is_no_path(given_text: str) -> None:
    """It would become a folder of that name."""
    with pytest.raises(click.BadParameter) as caught:
        PATH.convert(given_text, None, None)
    assert caught.value.message == "A path is needed here, not a repository of the Hub."
    assert PATH.convert(f"./{given_text}", None, None) == Path(given_text)
