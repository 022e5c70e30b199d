from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.errors import NumericalError
from llamaconv.model.workers import Workers
from llamaconv.quantizers.hessian import accumulate, factorize, mirror, relative_error, round_to_nearest
from tests.quantizers.problems import hessian_of, inputs, serial, weight

WIDE = 300  # more than one panel, and no multiple of one


def indefinite(excess: float) -> Tensor:
    """[2, 2] with a diagonal of ones and the eigenvalues ``-excess`` and ``2 + excess``: damping must exceed excess."""
    return torch.tensor([[1.0, 1.0 + excess], [1.0 + excess, 1.0]])


@pytest.mark.parametrize(
    ("dtype", "columns"), [(torch.float32, WIDE), (torch.bfloat16, 48), (torch.float16, 48), (torch.float64, 48)]
)
def test_the_hessian_is_the_sum_of_outer_products(dtype: torch.dtype, columns: int) -> None:
    """Inputs of any float dtype are summed in float32: x^T x, on top of what is there."""
    x, y = inputs(1, 70, columns).to(dtype), inputs(2, 90, columns).to(dtype)
    hessian = torch.zeros(columns, columns)
    accumulate(hessian, [x], serial)
    accumulate(hessian, [y], serial)
    mirror(hessian)
    both = torch.cat([x, y]).double()
    exact = both.T @ both
    torch.testing.assert_close(hessian.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.diagonal().mean()))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 1000))
def test_any_split_of_the_tokens_gives_the_same_sum(lengths: list[int], seed: int) -> None:
    """Tokens may come in any number of inputs and calls, empty ones among them: equal up to float32."""
    columns = 17
    x = inputs(seed, sum(lengths), columns)
    whole, split = torch.zeros(columns, columns), torch.zeros(columns, columns)
    accumulate(whole, [x], serial)
    parts = list(x.split(lengths))
    accumulate(split, parts[:2], serial)
    accumulate(split, parts[2:], serial)
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5 * float(1 + whole.diagonal().max()))


def test_many_short_inputs_are_one_long_one() -> None:
    """Also where they are more than are converted to float32 at a time."""
    x = inputs(3, 9000, 6).bfloat16()
    exact = x.double().T @ x.double()
    for parts in ([x], list(x.split(100)), list(x.split(8999))):
        hessian = torch.zeros(6, 6)
        accumulate(hessian, parts, serial)
        torch.testing.assert_close(hessian.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.diagonal().mean()))


def test_the_number_of_workers_does_not_change_a_bit_of_the_sum() -> None:
    """1 and 2 workers add the same numbers in the same order."""
    parts = [inputs(seed, 50 + seed, WIDE).half() for seed in range(5)]
    sums = []
    for count in (1, 2):
        with Workers(count) as workers:
            hessian = torch.zeros(WIDE, WIDE)
            accumulate(hessian, parts, workers.map)
            sums.append(hessian)
    assert torch.equal(*sums)


def test_mirror_makes_the_sum_symmetric() -> None:
    """What lies below the panels on the diagonal is the transpose of what lies above; nothing else changes."""
    hessian = torch.zeros(WIDE, WIDE)
    accumulate(hessian, [inputs(4, 80, WIDE)], serial)
    assert not hessian[256:, :256].any()
    before = hessian.clone()
    mirror(hessian)
    assert torch.equal(hessian, hessian.T)
    assert torch.equal(hessian.triu(), before.triu())


@given(st.integers(2, 60), st.booleans(), st.sampled_from([0.001, 0.01, 0.3]), st.integers(0, 1000))
def test_the_factor_is_that_of_the_inverse(columns: int, act_order: bool, damping: float, seed: int) -> None:
    """U is upper triangular and U^T U H = I for the damped Hessian in quantization order, checked in float64."""
    hessian = hessian_of(inputs(seed, 4 * columns, columns))
    given_hessian = hessian.clone()
    factor = factorize(hessian, damping, act_order)
    assert torch.equal(hessian, given_hessian)
    assert torch.equal(factor.upper, factor.upper.triu())
    assert bool((factor.upper.diagonal() > 0).all())
    upper, damped = factor.upper.double(), factor.hessian.double()
    torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(columns).double(), rtol=0, atol=2e-3)

    expected = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(columns)
    torch.testing.assert_close(damped, expected[factor.order][:, factor.order], rtol=1e-6, atol=0)
    assert (factor.damping, factor.raises) == (damping, 0)
    assert torch.equal(factor.diagonal, hessian.diagonal())


def test_columns_go_by_falling_diagonal_and_equal_ones_stay_in_order() -> None:
    """act_order sorts the columns stably; without it they are quantized as they come."""
    hessian = torch.tensor([1.0, 3.0, 3.0, 2.0, 0.0, 3.0]).diag()
    factor = factorize(hessian, 0.01, act_order=True)
    assert factor.order.tolist() == [1, 2, 5, 3, 0, 4]
    assert factor.diagonal.tolist() == [1.0, 3.0, 3.0, 2.0, 0.0, 3.0]
    assert factorize(hessian, 0.01, act_order=False).order.tolist() == [0, 1, 2, 3, 4, 5]
    many = torch.tensor([3.0, 1.0, 2.0]).repeat(WIDE)
    order = factorize(many.diag(), 0.01, act_order=True).order.tolist()
    assert order == [*range(0, 3 * WIDE, 3), *range(2, 3 * WIDE, 3), *range(1, 3 * WIDE, 3)]


@pytest.mark.parametrize(
    ("excess", "damping", "enough", "raises"),
    [
        (0.005, 0.01, 0.01, 0),
        (0.02, 0.01, 0.0316228, 1),
        (0.05, 0.01, 0.1, 2),
        (0.5, 0.01, 1.0, 4),
        (0.9, 0.02, 1.0, 4),
        (2e-4, 0.0, 3.16228e-4, 1),
        (0.002, 0.0, 3.16228e-3, 3),
        (0.5, 1e-6, 1.0, 8),
        (0.5, 0.9, 0.9, 0),
        (0.95, 0.9, 1.0, 1),
    ],
)
def test_damping_is_raised_until_it_is_enough(excess: float, damping: float, enough: float, raises: int) -> None:
    """By half a decade at a time, up to the mean of the diagonal; the first step that works is taken and counted."""
    factor = factorize(indefinite(excess), damping, act_order=False)
    assert factor.damping == pytest.approx(enough, rel=1e-5)
    assert factor.raises == raises
    assert factor.hessian.diagonal().tolist() == pytest.approx([1 + enough] * 2)
    assert torch.equal(factor.diagonal, torch.ones(2))


@pytest.mark.parametrize(("damping", "raises"), [(0.0, 8), (0.001, 6), (0.01, 4), (0.02, 4), (0.5, 1), (1.0, 0)])
def test_a_hessian_that_no_damping_helps_is_refused(damping: float, raises: int) -> None:
    """The error says how far the damping was raised, and how often."""
    with pytest.raises(NumericalError) as caught:
        factorize(indefinite(3.0), damping, act_order=False)
    assert caught.value.message == (
        f"the Hessian is not positive definite, even with damping 1 (raised {raises} times)"
    )
    assert caught.value.hint == "Use more calibration data, or --fallback rtn to round this module to nearest."


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_hessian_that_is_not_finite_is_refused(value: float) -> None:
    """NaN and infinity fail at every damping, they give no factor."""
    hessian = hessian_of(inputs(5, 40, 8))
    hessian[2, 5] = hessian[5, 2] = value
    with pytest.raises(NumericalError, match="not positive definite"):
        factorize(hessian, 0.01, act_order=False)


def test_fewer_tokens_than_columns_are_no_obstacle() -> None:
    """A Hessian without full rank is definite once it is damped."""
    factor = factorize(hessian_of(inputs(6, 20, 60)), 0.01, act_order=True)
    assert factor.raises == 0
    assert bool(torch.isfinite(factor.upper).all())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_dead_columns_stand_by_themselves(damping: float, act_order: bool) -> None:
    """A column that no input lights has no part in any other column's error, and no more weight than damping gives."""
    x = inputs(7, 100, 9)
    x[:, [2, 6]] = 0
    hessian = hessian_of(x)
    factor = factorize(hessian, damping, act_order)
    assert factor.raises == 0
    dead = torch.isin(factor.order, torch.tensor([2, 6]))
    if act_order:
        assert factor.order.tolist()[-2:] == [2, 6]
    for matrix in (factor.upper, factor.hessian):
        assert not matrix[dead][:, ~dead].any()
        assert not matrix[~dead][:, dead].any()
        assert matrix[dead][:, dead].count_nonzero() == 2
        assert bool((matrix.diagonal() > 0).all())
    expected = hessian + damping * hessian.diagonal().mean() * torch.eye(9)
    expected = expected[factor.order][:, factor.order]
    torch.testing.assert_close(factor.hessian[~dead][:, ~dead], expected[~dead][:, ~dead])
    alone = (damping or 1.0) * hessian.diagonal().mean()
    torch.testing.assert_close(factor.hessian.diagonal()[dead], alone.expand(2))


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_a_layer_that_saw_nothing_has_the_factor_of_rounding_to_nearest(damping: float) -> None:
    """With no input at all the factor is diagonal."""
    factor = factorize(torch.zeros(7, 7), damping, act_order=True)
    assert torch.equal(factor.upper, torch.eye(7))
    assert torch.equal(factor.hessian, torch.eye(7))
    assert factor.order.tolist() == list(range(7))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 1000), st.sampled_from([0.3, 0.01, 1e-3]))
def test_the_relative_error_is_that_of_the_outputs(rows: int, columns: int, seed: int, size: float) -> None:
    """|(W - Q) X|^2 / |W X|^2, computed from the Hessian."""
    w, x = weight(seed, rows, columns), inputs(seed + 1, 3 * columns, columns)
    approximation = w + size * weight(seed + 2, rows, columns)
    direct = ((w - approximation).double() @ x.double().T).square().sum() / (w.double() @ x.double().T).square().sum()
    assert relative_error(w, approximation, hessian_of(x), serial) == pytest.approx(float(direct), rel=1e-3)


def test_the_relative_error_of_nothing_is_0() -> None:
    """No error gives 0, and so does a layer that puts out nothing, whatever became of its weight."""
    w, hessian = weight(8, 6, 9), hessian_of(inputs(9, 40, 9))
    assert relative_error(w, w, hessian, serial) == 0.0
    assert relative_error(w, 2 * w, torch.zeros(9, 9), serial) == 0.0
    assert relative_error(torch.zeros(6, 9), w, hessian, serial) == 0.0
    assert relative_error(w, torch.zeros(6, 9), hessian, serial) == 1.0


def test_the_relative_error_does_not_depend_on_the_number_of_workers() -> None:
    """1 and 2 workers give the same number."""
    w, hessian = weight(10, 700, 40), hessian_of(inputs(11, 200, 40))
    errors = []
    for count in (1, 2):
        with Workers(count) as workers:
            errors.append(relative_error(w, w.round(decimals=2), hessian, workers.map))
    assert errors[0] == errors[1]


def test_the_factor_of_rounding_to_nearest() -> None:
    """It moves no error and keeps the order; a Hessian with NaN in it, of which no factor exists, will do."""
    hessian = hessian_of(inputs(12, 50, 5))
    hessian[1, 1], hessian[3, 3] = torch.nan, torch.inf
    factor = round_to_nearest(hessian)
    assert torch.equal(factor.upper, torch.eye(5))
    assert torch.equal(factor.hessian, torch.eye(5))
    assert factor.order.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(factor.diagonal[[0, 2, 4]], hessian.diagonal()[[0, 2, 4]])
    assert factor.diagonal[[1, 3]].tolist() == [0.0, 0.0]
    assert (factor.damping, factor.raises) == (0.0, 0)
