from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.quantizers.grids import AffineGrid, GridParameters, ScaleRule
from tests.quantizers.problems import nearest_codes, weight

BITS = [2, 3, 4, 8]
grids = st.builds(AffineGrid, st.sampled_from(BITS), st.booleans(), st.sampled_from(["search", "minmax"]))


def row_errors(w: Tensor, importance: Tensor, parameters: GridParameters, bits: int) -> Tensor:
    """The weighted squared error of rounding each row to nearest, in float64: [N]."""
    scale, zero = parameters.scale.double()[:, None], parameters.zero.double()[:, None]
    lost = (nearest_codes(w, parameters.scale, parameters.zero, bits) - zero) * scale - w.double()
    return (lost.square() * importance.double()).sum(1)


def random_importance(seed: int, columns: int) -> Tensor:
    return torch.randn(columns, generator=torch.Generator().manual_seed(seed)).exp()


@pytest.mark.parametrize(
    ("bits", "row", "scale", "zero"),
    [
        (2, [1.5, -0.5, 0.25], 1.0, 2.0),
        (3, [0.5, -1.75, 0.0], 0.5, 4.0),
        (4, [-3.0, 7.5, 1.0], 1.0, 8.0),
        (8, [-127.5, 3.0, 4.0], 1.0, 128.0),
    ],
)
def test_a_symmetric_grid_spans_the_largest_magnitude_both_ways(
    bits: int, row: list[float], scale: float, zero: float
) -> None:
    """The scale is 2 max |w| / (2**bits - 1), the zero point 2**(bits-1)."""
    parameters = AffineGrid(bits, True, "minmax").fit(torch.tensor([row]), torch.ones(3))
    assert (parameters.scale.tolist(), parameters.zero.tolist()) == ([scale], [zero])


@pytest.mark.parametrize(
    ("bits", "row", "scale", "zero"),
    [
        (2, [-1.0, 2.0, 0.5], 1.0, 1.0),
        (3, [-2.5, 1.0, 0.0], 0.5, 5.0),
        (4, [-3.0, 12.0, 1.0], 1.0, 3.0),
        (8, [-55.0, 200.0, 1.0], 1.0, 55.0),
        # Ranges always hold 0, and a zero point of 0 is out of v1's reach.
        (4, [15.0, 3.0, 1.0], 1.0, 1.0),
        (4, [-15.0, -3.0, -1.0], 1.0, 15.0),
    ],
)
def test_an_asymmetric_grid_spans_the_range(bits: int, row: list[float], scale: float, zero: float) -> None:
    """The scale is (max - min) / (2**bits - 1), the zero point the code of 0, at least 1."""
    parameters = AffineGrid(bits, False, "minmax").fit(torch.tensor([row]), torch.ones(3))
    assert (parameters.scale.tolist(), parameters.zero.tolist()) == ([scale], [zero])


@settings(deadline=None)  # kernels are compiled on first use
@given(grids, st.integers(0, 10_000), st.floats(-30, 4), st.floats(-3, 3))
def test_scales_are_positive_float16_and_zero_points_are_codes(
    grid: AffineGrid, seed: int, magnitude: float, shift: float
) -> None:
    """At any size of weights, down to what vanishes in float16, and for rows of one sign."""
    w = (weight(seed, 5, 7) + shift * torch.arange(-2, 3)[:, None]) * 10.0**magnitude
    parameters = grid.fit(w, random_importance(seed, 7))
    assert parameters.scale.dtype == parameters.zero.dtype == torch.float32
    assert parameters.scale.shape == parameters.zero.shape == (5,)
    assert bool((parameters.scale > 0).all())
    assert torch.equal(parameters.scale, parameters.scale.half().float())
    assert torch.equal(parameters.zero, parameters.zero.round())
    if grid.symmetric:
        assert set(parameters.zero.tolist()) == {2.0 ** (grid.bits - 1)}
    else:
        assert 1 <= float(parameters.zero.min()) <= float(parameters.zero.max()) <= grid.max_code


@pytest.mark.parametrize("rule", ["search", "minmax"])
@pytest.mark.parametrize(("symmetric", "zero"), [(True, 8.0), (False, 1.0)])
def test_a_row_of_zeros_has_scale_1(rule: ScaleRule, symmetric: bool, zero: float) -> None:
    """Nothing is divided by 0, and the row beside it does not notice."""
    w = torch.stack([torch.zeros(32), weight(1, 1, 32)[0]])
    grid = AffineGrid(4, symmetric, rule)
    parameters = grid.fit(w, torch.ones(32))
    assert (parameters.scale[0].item(), parameters.zero[0].item()) == (1.0, zero)
    assert parameters.scale[1] == grid.fit(w[1:], torch.ones(32)).scale[0]


@pytest.mark.parametrize("rule", ["search", "minmax"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_vanish_in_float16_get_its_smallest_scale(rule: ScaleRule, symmetric: bool) -> None:
    """A scale of 0 would make every code a division by 0."""
    parameters = AffineGrid(4, symmetric, rule).fit(torch.tensor([[1e-12, -1e-12, 3e-13]]), torch.ones(3))
    assert parameters.scale.tolist() == [2.0**-24]


@pytest.mark.parametrize("rule", ["search", "minmax"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("largest", [1e6, 1e9])
def test_a_range_that_overflows_float16_has_an_infinite_scale(rule: ScaleRule, symmetric: bool, largest: float) -> None:
    """The search does not clip a row to what float16 can hold; the quantizer refuses it."""
    w = torch.stack([torch.linspace(-largest, largest, 33), torch.linspace(-1, 1, 33)])
    scale = AffineGrid(4, symmetric, rule).fit(w, torch.ones(33)).scale
    assert torch.isinf(scale).tolist() == [True, False]


@given(st.sampled_from(BITS), st.booleans(), st.integers(1, 70), st.integers(0, 10_000))
def test_the_search_is_never_worse_than_the_whole_range(bits: int, symmetric: bool, columns: int, seed: int) -> None:
    """Row by row, in the weighted error that it minimizes."""
    w, importance = weight(seed, 9, columns), random_importance(seed, columns)
    whole, searched = (
        row_errors(w, importance, AffineGrid(bits, symmetric, rule).fit(w, importance), bits)
        for rule in ("minmax", "search")
    )
    assert bool((searched <= whole * (1 + 1e-4) + 1e-12).all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_finds_the_best_of_40_to_100_percent(bits: int, symmetric: bool) -> None:
    """No range between 40 % and 100 % of the whole, in steps of 1 %, has a smaller weighted error."""
    w, importance = weight(3, 40, 48), random_importance(4, 48)
    found = row_errors(w, importance, AffineGrid(bits, symmetric, "search").fit(w, importance), bits)
    grid = AffineGrid(bits, symmetric, "minmax")
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    least = torch.full_like(found, torch.inf)
    for percent in range(40, 101):
        ends = torch.cat([low, high], 1) * percent / 100
        least = torch.minimum(least, row_errors(w, importance, grid.fit(ends, torch.ones(2)), bits))
    torch.testing.assert_close(found, least, rtol=1e-3, atol=0)


def test_the_search_gives_up_a_weight_that_hardly_matters() -> None:
    """An outlier in a column of little importance is clipped, in one of much importance it is kept."""
    w = weight(5, 6, 32)
    w[:, 7] = 4 * w.abs().amax(1)
    whole = AffineGrid(4, True, "minmax").fit(w, torch.ones(32)).scale
    importance = torch.ones(32)
    for weight_of_outlier, kept in ((1e-3, False), (1e3, True)):
        importance[7] = weight_of_outlier
        scale = AffineGrid(4, True, "search").fit(w, importance).scale
        assert bool((scale > 0.9 * whole).all() if kept else (scale < 0.5 * whole).all())


@pytest.mark.parametrize("strength", [1e-30, 1e-10, 1e10, 1e30])
def test_the_search_does_not_depend_on_the_unit_of_importance(strength: float) -> None:
    """Only ratios of importance count, also where their products with squared errors would leave float32's range."""
    w, importance = 1e-3 * weight(6, 50, 32), random_importance(6, 32)
    usual, other = (AffineGrid(3).fit(w, unit * importance) for unit in (1.0, strength))
    assert torch.equal(usual.scale, other.scale)


def test_columns_without_any_importance_count_alike() -> None:
    """A group that no calibration token lit is fitted as if all its columns were equally important."""
    w = 1e-3 * weight(7, 50, 32)
    blind, even = (AffineGrid(3).fit(w, importance) for importance in (torch.zeros(32), torch.ones(32)))
    assert torch.equal(blind.scale, even.scale)
