from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.quantizers.gptq import Gptq
from llamaconv.quantizers.grids import AffineGrid
from llamaconv.quantizers.hessian import factorize
from llamaconv.quantizers.refine import column_blocks, refine
from tests.quantizers import reference
from tests.quantizers.problems import hessian_of, inputs, serial, weight, weighted_error


def dequantized(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """[R, K] float32 of groups that lie side by side."""
    size = codes.shape[1] // scales.shape[1]
    scale, zero = (part.float().repeat_interleave(size, 1) for part in (scales, zeros))
    return (codes.float() - zero) * scale


@pytest.mark.parametrize("group_size", [32, 144, -1])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sweeps", [1, 3])
def test_codes_and_scales_are_those_of_the_reference(bits: int, group_size: int, sweeps: int) -> None:
    """Code for code and scale for scale what float64 gives; groups are narrower and wider than a block."""
    columns = 288
    w, factor = weight(bits, 60, columns), factorize(hessian_of(inputs(1, 1152, columns)), 0.01, act_order=False)
    grid = AffineGrid(bits, False)
    walked = Gptq(grid, group_size, sweeps=0).quantize(w, factor, serial)
    start = walked.codes, walked.scales, walked.zeros
    exact = reference.refine(
        w.double().numpy(),
        factor.hessian.double().numpy(),
        *(part.double().numpy() for part in start),
        bits=bits,
        sweeps=sweeps,
    )
    refine(w, factor.hessian, *start, group_size=group_size, grid=grid, sweeps=sweeps)
    certain = torch.from_numpy(exact.certain)
    assert certain.double().mean() > 0.7
    assert torch.equal(start[0][certain].double(), torch.from_numpy(exact.codes)[certain])
    assert torch.equal(start[1][certain].double(), torch.from_numpy(exact.scales)[certain])


@settings(max_examples=60)  # kernels are compiled on first use
@given(
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
    st.sampled_from([16, 32, 144, -1]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_a_sweep_never_raises_the_weighted_error(
    bits: int, symmetric: bool, group_size: int, walked: bool, seed: int
) -> None:
    """From GPTQ's codes as from random ones, in the damped Hessian's measure, no further sweep raises it."""
    columns = 288
    w, factor = weight(seed, 5, columns), factorize(hessian_of(inputs(seed, 400, columns)), 0.01, act_order=False)
    grid = AffineGrid(bits, symmetric)
    start = Gptq(grid, group_size, sweeps=0).quantize(w, factor, serial)
    codes, scales, zeros = start.codes, start.scales, start.zeros
    if not walked:
        random = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 1 << bits, codes.shape, dtype=torch.uint8, generator=random)
        scales = (scales * (0.5 + torch.rand(scales.shape, generator=random))).half()
    before = weighted_error(w - dequantized(codes, scales, zeros), factor.hessian)
    for sweeps in (1, 2, 4):
        refined = codes.clone(), scales.clone(), zeros.clone()
        refine(w, factor.hessian, *refined, group_size=group_size, grid=grid, sweeps=sweeps)
        after = weighted_error(w - dequantized(*refined), factor.hessian)
        assert after <= before * (1 + 1e-5)
        assert torch.equal(refined[2], zeros)
        assert int(refined[0].max()) <= grid.max_code
        assert bool((refined[1] > 0).all())
        assert bool(torch.isfinite(refined[1]).all())
        before = after


@pytest.mark.parametrize("group_size", [32, -1])
def test_a_weight_that_lies_on_the_grid_stays(group_size: int) -> None:
    """Where there is no error there is nothing to better."""
    columns = 160
    groups = 1 if group_size == -1 else columns // group_size
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (6, columns), dtype=torch.uint8, generator=random)
    scales = (0.5 + torch.rand(6, groups, generator=random)).half()
    zeros = torch.randint(1, 16, (6, groups), dtype=torch.uint8, generator=random)
    w, hessian = dequantized(codes, scales, zeros), hessian_of(inputs(1, 400, columns))
    swept = codes.clone(), scales.clone(), zeros.clone()
    refine(w, hessian, *swept, group_size=group_size, grid=AffineGrid(4, False), sweeps=1)
    assert all(torch.equal(one, other) for one, other in zip(swept, (codes, scales, zeros), strict=True))


def test_one_column_alone_gets_its_best_code() -> None:
    """With a diagonal Hessian and scales that are the best already, a sweep is rounding to nearest."""
    w = torch.tensor([[-3.0, -1.0, 1.0, 3.0]])
    codes = torch.tensor([[1, 2, 4, 6]], dtype=torch.uint8)
    scales, zeros = torch.tensor([[1.0]]).half(), torch.tensor([[4]], dtype=torch.uint8)
    hessian = torch.tensor([1.0, 2.0, 2.0, 1.0]).diag()
    refine(w, hessian, codes, scales, zeros, group_size=-1, grid=AffineGrid(3), sweeps=1)
    # The first refit: codes -3 -2 0 2 against weights -3 -1 1 3, so (9 + 4 + 0 + 6) / (9 + 8 + 0 + 4).
    assert scales.item() == torch.tensor(19 / 21).half().item()
    assert codes.tolist() == [[1, 3, 5, 7]]


def test_the_best_scale_for_given_codes() -> None:
    """A sweep over codes that are right but for their scale finds the scale, to float16."""
    codes = torch.tensor([[0, 3, 9, 15], [15, 1, 2, 14]], dtype=torch.uint8)
    zeros = torch.full((2, 1), 8, dtype=torch.uint8)
    w = dequantized(codes, torch.tensor([[0.3], [0.7]]), zeros)
    scales = torch.tensor([[0.31], [0.68]]).half()
    before = codes.clone()
    refine(w, hessian_of(inputs(2, 50, 4)), codes, scales, zeros, group_size=-1, grid=AffineGrid(4), sweeps=1)
    assert torch.equal(scales, torch.tensor([[0.3], [0.7]]).half())
    assert torch.equal(codes, before)


def test_a_group_whose_codes_are_all_zero_points_keeps_its_scale_at_first() -> None:
    """Such codes say nothing of a scale; codes are then found on the grid as it is."""
    zeros = torch.full((2, 1), 8, dtype=torch.uint8)
    codes, scales = torch.full((2, 4), 8, dtype=torch.uint8), torch.tensor([[0.5], [0.25]]).half()
    w = torch.tensor([[1.0, -0.5, 0.0, 0.5], [0.25, 0.5, -1.0, 0.0]])
    refine(w, torch.eye(4), codes, scales, zeros, group_size=-1, grid=AffineGrid(4), sweeps=1)
    assert scales.tolist() == [[0.5], [0.25]]
    assert codes.tolist() == [[10, 7, 8, 9], [9, 10, 4, 8]]


def test_blocks_cross_no_border_of_a_group() -> None:
    """Runs of at most 128 columns; the first of a group says which group begins and where it ends."""
    assert list(column_blocks(96, 32)) == [(0, 32, (0, 32)), (32, 64, (1, 64)), (64, 96, (2, 96))]
    assert list(column_blocks(320, 160)) == [
        (0, 128, (0, 160)),
        (128, 160, None),
        (160, 288, (1, 320)),
        (288, 320, None),
    ]
    assert list(column_blocks(288, -1)) == [(0, 128, (0, 288)), (128, 256, None), (256, 288, None)]
