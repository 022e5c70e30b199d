from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.errors import NumericalError
from llamaconv.model.workers import Workers
from llamaconv.quantizers.gptq import Gptq
from llamaconv.quantizers.grids import AffineGrid, ScaleRule
from llamaconv.quantizers.hessian import factorize, round_to_nearest
from llamaconv.quantizers.packing import GptqWeight
from llamaconv.tensors import TensorSpec
from tests.quantizers import reference
from tests.quantizers.problems import hessian_of, inputs, nearest, same, serial, weight, weighted_error

BITS = [2, 3, 4, 8]
RULES: list[ScaleRule] = ["search", "minmax"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def rounded(w: Tensor, quantizer: Gptq) -> GptqWeight:
    """Each weight by itself."""
    return quantizer.quantize(w, round_to_nearest(torch.eye(w.shape[1])), serial)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_codes_are_those_of_the_reference(bits: int, symmetric: bool, group_size: int, act_order: bool) -> None:
    """Code for code, scale for scale and group for group the float64 algorithm of the paper."""
    agrees_with_the_reference(160, 192, bits, symmetric, group_size, act_order)


def test_codes_are_those_of_the_reference_where_groups_are_wider_than_a_block() -> None:
    """Two groups of 256 columns, each walked in two blocks, and more rows than one worker is given at a time."""
    agrees_with_the_reference(288, 512, 4, True, 256, True)


def agrees_with_the_reference(
    rows: int, columns: int, bits: int, symmetric: bool, group_size: int, act_order: bool
) -> None:
    w, x = weight(bits, rows, columns), inputs(group_size + 2, 4 * columns, columns)
    exact = reference.gptq(
        w.double().numpy(),
        x.double().numpy(),
        bits=bits,
        symmetric=symmetric,
        group_size=group_size,
        act_order=act_order,
        damping=0.01,
    )
    quantizer = Gptq(AffineGrid(bits, symmetric, "minmax"), group_size, act_order, sweeps=0)
    quantized = quantizer.quantize(w, factorize(hessian_of(x), 0.01, act_order), serial)
    # A weight that lies between two codes to within float32 may go either way, and then so may its whole row.
    certain = torch.from_numpy(exact.certain)
    assert certain.double().mean() > 0.85
    for ours, theirs in (
        (quantized.codes, exact.codes),
        (quantized.scales, exact.scales),
        (quantized.zeros, exact.zeros),
    ):
        assert torch.equal(ours[certain].double(), torch.from_numpy(theirs)[certain])
    assert quantized.group_index.dtype == torch.int32
    assert torch.equal(quantized.group_index, torch.from_numpy(exact.group_index))


def test_groups_with_act_order_are_runs_of_the_ordered_columns() -> None:
    """g_idx names, in the original order, the group in which each column was quantized."""
    strengths = torch.tensor([3.0, 9.0, 5.0, 7.0, 8.0, 2.0, 1.0, 6.0])
    quantized = Gptq(AffineGrid(4), group_size=2, act_order=True).quantize(
        weight(0, 4, 8), factorize(strengths.diag(), 0.01, act_order=True), serial
    )
    assert quantized.group_index.tolist() == [2, 0, 2, 1, 0, 3, 3, 1]


@settings(max_examples=40)  # kernels are compiled on first use
@given(st.sampled_from(BITS), st.booleans(), st.sampled_from(RULES), st.sampled_from([8, 32, -1]), st.integers(0, 1000))
def test_with_an_identity_hessian_gptq_rounds_to_nearest(
    bits: int, symmetric: bool, rule: ScaleRule, group_size: int, seed: int
) -> None:
    """Each code is the nearest on a grid fitted to its group alone, and equal to that of the fallback's factor."""
    w = weight(seed, 11, 64)
    grid = AffineGrid(bits, symmetric, rule)
    quantizer = Gptq(grid, group_size, sweeps=0)
    quantized = quantizer.quantize(w, factorize(torch.eye(64), 0.01, act_order=False), serial)
    assert same(quantized, rounded(w, quantizer))
    size = 64 if group_size == -1 else group_size
    for group in range(64 // size):
        parameters = grid.fit(w[:, group * size : (group + 1) * size], torch.ones(size))
        assert torch.equal(quantized.scales[:, group].float(), parameters.scale)
        assert torch.equal(quantized.zeros[:, group].float(), parameters.zero)
    # In float64, where no quotient is rounded onto a tie: two neighbours may be equally near to within float32.
    distance = (nearest(quantized, w) - quantized.codes.double()).abs()
    assert float(distance.max()) <= 1
    assert float(distance.mean()) < 1e-3


@pytest.mark.parametrize("act_order", [False, True])
def test_scales_are_searched_with_the_importance_of_the_groups_own_columns(act_order: bool) -> None:
    """The importance of a column is its place on the diagonal of the undamped Hessian."""
    w, diagonal = weight(17, 24, 64), torch.randn(64, generator=torch.Generator().manual_seed(18)).exp()
    factor = factorize(diagonal.diag(), 0.5, act_order)
    grid = AffineGrid(3)
    quantized = Gptq(grid, 16, act_order, sweeps=0).quantize(w, factor, serial)
    for group in range(4):
        columns = factor.order[16 * group : 16 * group + 16]
        assert torch.equal(quantized.scales[:, group].float(), grid.fit(w[:, columns], diagonal[columns]).scale)


def test_ties_go_to_the_even_multiple_of_the_scale() -> None:
    """As torch.round does it; beyond the last code they are clipped."""
    row = torch.tensor([[-7.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 6.5, 7.5]])
    quantized = rounded(row, Gptq(AffineGrid(4, True, "minmax"), -1, sweeps=0))
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.dequantize().tolist() == [[-8.0, -2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 6.0, 7.0]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_on_average_each_refinement_lowers_the_weighted_error(bits: int, symmetric: bool, rule: ScaleRule) -> None:
    """Rounding to nearest, GPTQ, GPTQ with one sweep, with three: each is better than the one before."""
    logs = torch.zeros(30, 4, dtype=torch.float64)
    for seed in range(len(logs)):
        w, hessian = weight(seed, 24, 64), hessian_of(inputs(seed, 256, 64, spread=1.0))
        factor = factorize(hessian, 0.01, act_order=False)
        plain = Gptq(AffineGrid(bits, symmetric, rule), 32, sweeps=0)
        weights = [rounded(w, plain)] + [replace(plain, sweeps=n).quantize(w, factor, serial) for n in (0, 1, 3)]
        logs[seed] = torch.tensor([weighted_error(w - q.dequantize(), hessian) for q in weights]).log()
    nearest_, walked, once, thrice = logs.mean(0).exp().tolist()
    assert walked < nearest_
    assert once < 0.95 * walked
    assert thrice < once


def backwards(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """A ``Map`` that begins with the last item."""
    return [function(item) for item in reversed(list(items))][::-1]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_the_order_in_which_rows_are_worked_on_changes_nothing(symmetric: bool, act_order: bool) -> None:
    """One worker, two at once, or the last rows first: the same bytes."""
    w, hessian = weight(1, 544, 96), hessian_of(inputs(2, 400, 96))
    factor = factorize(hessian, 0.01, act_order)
    quantizer = Gptq(AffineGrid(3, symmetric), 32, act_order)
    with Workers(1) as one:
        expected = quantizer.quantize(w, factor, one.map)
        assert same(quantizer.quantize(w, factor, backwards), expected)
    with Workers(2) as two:
        assert same(quantizer.quantize(w, factor, two.map), expected)


def test_rows_do_not_depend_on_those_before() -> None:
    """The rows that follow the first 256 are quantized without them as they are with them."""
    w, factor = weight(3, 320, 96), factorize(hessian_of(inputs(4, 400, 96)), 0.01, act_order=True)
    quantizer = Gptq(AffineGrid(4), 32)
    whole, part = (quantizer.quantize(rows, factor, serial) for rows in (w, w[256:]))
    assert torch.equal(part.codes, whole.codes[256:])
    assert torch.equal(part.scales, whole.scales[256:])


@pytest.mark.parametrize("sweeps", [0, 2])
def test_with_act_order_the_order_of_the_columns_does_not_matter(sweeps: int) -> None:
    """Columns of weight and Hessian shuffled alike give the codes and groups shuffled alike, and the same scales."""
    w, hessian = weight(5, 32, 96), hessian_of(inputs(6, 400, 96))
    shuffle = torch.randperm(96, generator=torch.Generator().manual_seed(7))
    quantizer = Gptq(AffineGrid(4, False), 32, act_order=True, sweeps=sweeps)
    straight = quantizer.quantize(w, factorize(hessian, 0.01, act_order=True), serial)
    shuffled = quantizer.quantize(w[:, shuffle], factorize(hessian[shuffle][:, shuffle], 0.01, act_order=True), serial)
    assert torch.equal(shuffled.codes, straight.codes[:, shuffle])
    assert torch.equal(shuffled.group_index, straight.group_index[shuffle])
    assert torch.equal(shuffled.scales, straight.scales)
    assert torch.equal(shuffled.zeros, straight.zeros)


@pytest.mark.parametrize("sweeps", [0, 3])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_dead_columns_are_rounded_by_themselves(sweeps: int, act_order: bool, rule: ScaleRule) -> None:
    """A column that no input lights gets its nearest code, be it one of many or a whole group."""
    dead = torch.tensor([3, 17, *range(32, 64)])
    x = inputs(8, 400, 96)
    x[:, dead] = 0
    w = weight(9, 64, 96)
    quantizer = Gptq(AffineGrid(4, False, rule), 32, act_order, sweeps)
    quantized = quantizer.quantize(w, factorize(hessian_of(x), 0.01, act_order), serial)
    distance = (nearest(quantized, w)[:, dead] - quantized.codes[:, dead].double()).abs()
    assert float(distance.max()) <= 1
    assert float(distance.mean()) < 1e-3
    relative = (quantized.dequantize() - w)[:, dead].norm() / w[:, dead].norm()
    assert float(relative) < 0.2


def test_dead_columns_do_not_change_what_others_become() -> None:
    """As long as they do not widen a group's range, other weights in dead columns leave all other codes alone."""
    x = inputs(10, 400, 64)
    x[:, 5::8] = 0
    factor = factorize(hessian_of(x), 0.01, act_order=False)
    w = weight(11, 32, 64)
    w[:, 5::8] *= 0.01
    other = w.clone()
    other[:, 5::8] *= -3
    quantizer = Gptq(AffineGrid(4, True, "minmax"), 32, sweeps=0)
    one, two = (quantizer.quantize(part, factor, serial) for part in (w, other))
    alive = torch.ones(64, dtype=torch.bool)
    alive[5::8] = False
    assert torch.equal(one.codes[:, alive], two.codes[:, alive])
    assert torch.equal(one.scales, two.scales)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_zeros_stay_zero(symmetric: bool, rule: ScaleRule) -> None:
    """Whatever the inputs are."""
    w = weight(12, 32, 64)
    w[::3] = 0
    factor = factorize(hessian_of(inputs(13, 300, 64)), 0.01, act_order=True)
    quantized = Gptq(AffineGrid(4, symmetric, rule), 32).quantize(w, factor, serial)
    assert not quantized.dequantize()[::3].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1e3])
def test_weights_of_any_size_stay_near_themselves(symmetric: bool, rule: ScaleRule, size: float) -> None:
    """Scales near the ends of float16 are coarse or few, but no code is further off than its grid makes it."""
    w = size * weight(14, 32, 64)
    quantized = rounded(w, Gptq(AffineGrid(8, symmetric, rule), 32, sweeps=3))
    scale = quantized.scales.float()[:, quantized.group_index.long()]
    off = (quantized.dequantize() - w).abs()
    inside = (quantized.codes > 0) & (quantized.codes < 255)
    assert bool((off <= 0.501 * scale)[inside].all())
    assert bool((off <= 2**-17 + 0.05 * w.abs().amax(1, keepdim=True)).all())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sweeps", [0, 1])
def test_a_scale_that_overflows_float16_is_refused(rule: ScaleRule, sweeps: int) -> None:
    """Not clipped, and not written as infinity."""
    w = weight(15, 32, 64)
    w[20, 40] = 1e6
    quantizer = Gptq(AffineGrid(4, True, rule), 32, sweeps=sweeps)
    with pytest.raises(NumericalError) as caught:
        quantizer.quantize(w, factorize(hessian_of(inputs(16, 300, 64)), 0.01, act_order=False), serial)
    assert caught.value.message == "a scale overflows float16"
    assert caught.value.hint == ("The weight's range is too wide for the GPTQ format: leave the layer out with --skip.")


@pytest.mark.parametrize(
    ("shape", "group_size", "faults"),
    [
        ((96, 64), 32, []),
        ((96, 64), -1, []),
        ((96, 64), 48, ["a.weight [96, 64]: groups of 48 do not divide 64 inputs"]),
        ((96, 64), 128, ["a.weight [96, 64]: groups of 128 do not divide 64 inputs"]),
        ((40, 64), -1, ["a.weight [40, 64]: 40 outputs are not a multiple of 32"]),
        (
            (40, 72),
            64,
            [
                "a.weight [40, 72]: 40 outputs are not a multiple of 32",
                "a.weight [40, 72]: 72 inputs are not a multiple of 32",
                "a.weight [40, 72]: groups of 64 do not divide 72 inputs",
            ],
        ),
    ],
)
def test_all_that_forbids_a_shape_is_named(shape: tuple[int, int], group_size: int, faults: list[str]) -> None:
    """The format holds multiples of 32 in both directions, and groups must divide the inputs."""
    assert Gptq(AffineGrid(4), group_size).faults(TensorSpec("a.weight", shape, torch.float32)) == faults


def test_the_configuration_that_is_written() -> None:
    """The keys that AutoGPTQ, GPTQModel, vLLM and transformers read."""
    assert Gptq(AffineGrid(3, False), 64, act_order=True).config() == {
        "quant_method": "gptq",
        "bits": 3,
        "group_size": 64,
        "desc_act": True,
        "sym": False,
        "checkpoint_format": "gptq",
        "true_sequential": True,
        "static_groups": False,
    }
