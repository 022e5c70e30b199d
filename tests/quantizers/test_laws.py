"""What holds for every quantizer: each mode, with the settings that change what it stores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from llamaconv.model.workers import Workers
from llamaconv.quantizers.base import QuantizedWeight, Quantizer
from llamaconv.quantizers.gptq import Gptq
from llamaconv.quantizers.hessian import factorize
from llamaconv.quantizers.modes import quantizer_for_mode, quantizer_of_checkpoint
from llamaconv.quantizers.names import MODES
from llamaconv.quantizers.packing import CheckpointFormat
from llamaconv.tensors import TensorSpec
from tests.quantizers.problems import hessian_of, inputs, serial, weight

# By how much a weight of normally distributed values may change, relative to its norm: about twice as much as by
# rounding to nearest, since GPTQ moves errors to where inputs are weak.
LOSS = {2: 0.9, 3: 0.5, 4: 0.25, 8: 0.02}


# group_size, symmetric, act_order, format
GPTQ_SETTINGS: list[tuple[int, bool, bool, CheckpointFormat]] = [
    (32, True, False, "gptq"),
    (32, False, True, "gptq"),
    (-1, True, True, "gptq"),
    (-1, False, False, "gptq"),
    (32, False, False, "gptq_v2"),
    (-1, True, True, "gptq_v2"),
]


def quantizers() -> list[Quantizer]:
    """Every mode, and those that take settings with all of these."""
    found: list[Quantizer] = []
    for mode in MODES:
        plain = quantizer_for_mode(mode)
        if not isinstance(plain, Gptq):
            found.append(plain)
            continue
        for group_size, symmetric, act_order, format in GPTQ_SETTINGS:
            grid = replace(plain.grid, symmetric=symmetric)
            found.append(replace(plain, grid=grid, group_size=group_size, act_order=act_order, format=format))
    return found


every_quantizer = pytest.mark.parametrize("quantizer", quantizers(), ids=lambda q: f"{q.mode}-{_settings(q)}")


def _settings(quantizer: Quantizer) -> str:
    if not isinstance(quantizer, Gptq):
        return "default"
    return "-".join(
        (
            quantizer.format,
            "sym" if quantizer.grid.symmetric else "asym",
            "act" if quantizer.act_order else "static",
            str(quantizer.group_size),
        )
    )


def quantized(quantizer: Quantizer, rows: int = 96, columns: int = 64, seed: int = 0) -> QuantizedWeight:
    """A weight of that shape, quantized as the package does it."""
    factor = None
    if quantizer.calibrated:
        act_order = isinstance(quantizer, Gptq) and quantizer.act_order
        factor = factorize(hessian_of(inputs(seed, 4 * columns, columns)), 0.01, act_order)
    return quantizer.quantize(weight(seed, rows, columns), factor, serial)


def stored(weight: QuantizedWeight) -> bytes:
    """What a checkpoint holds of it."""
    return save(weight.tensors())


@settings(max_examples=8)  # kernels are compiled on first use
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 100))
@every_quantizer
def test_the_specs_are_those_of_the_tensors(quantizer: Quantizer, rows: int, columns: int, seed: int) -> None:
    """Names, shapes and dtypes are known before a weight is read, in the order in which they come."""
    shape = (32 * rows, 32 * columns)
    spec = TensorSpec("a.b.weight", shape, torch.bfloat16)
    assert quantizer.faults(spec) == []
    tensors = quantized(quantizer, *shape, seed).tensors()
    real = tuple(TensorSpec.of(f"a.b.{suffix}", tensor) for suffix, tensor in tensors.items())
    assert quantizer.specs("a.b", spec) == real
    assert all(tensor.is_contiguous() for tensor in tensors.values())


@every_quantizer
def test_tensors_that_are_read_back_are_the_same_weight(quantizer: Quantizer) -> None:
    """Through a safetensors file's bytes, by the quantizer itself and by the one that its configuration names."""
    weight = quantized(quantizer)
    for reader in (quantizer, quantizer_of_checkpoint(quantizer.config())):
        back = reader.read(load(stored(weight)))
        assert stored(back) == stored(weight)
        assert torch.equal(back.dequantize(), weight.dequantize())


@every_quantizer
def test_the_marker_is_among_the_suffixes_of_what_is_stored(quantizer: Quantizer) -> None:
    """A checkpoint's quantized layers are found by it, and their tensors by the suffixes."""
    assert quantizer.marker in quantizer.suffixes
    assert tuple(quantized(quantizer).tensors()) == quantizer.suffixes
    assert quantizer.marker != "weight"


@every_quantizer
def test_what_is_dequantized_is_near_the_weight(quantizer: Quantizer) -> None:
    """[N, K] float32, as near as the width of a code allows."""
    exact, back = weight(3, 96, 64), quantized(quantizer, seed=3).dequantize()
    assert (back.shape, back.dtype) == (exact.shape, torch.float32)
    assert float((back - exact).norm() / exact.norm()) < LOSS[quantizer.bits]


@every_quantizer
def test_the_weight_and_the_factor_are_left_as_they_are(quantizer: Quantizer) -> None:
    """Quantizing is a pure function."""
    w = weight(4, 96, 64)
    factor = factorize(hessian_of(inputs(4, 256, 64)), 0.01, act_order=True)
    before = [part.clone() for part in (w, factor.upper, factor.hessian, factor.order, factor.diagonal)]
    quantizer.quantize(w, factor if quantizer.calibrated else None, serial)
    after = (w, factor.upper, factor.hessian, factor.order, factor.diagonal)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@every_quantizer
def test_the_number_of_workers_changes_no_byte(quantizer: Quantizer) -> None:
    """One run, another, and one with two workers."""
    w = weight(5, 288, 64)
    factor = factorize(hessian_of(inputs(5, 256, 64)), 0.01, act_order=True) if quantizer.calibrated else None
    runs = set()
    for count in (1, 1, 2):
        with Workers(count) as workers:
            runs.add(stored(quantizer.quantize(w, factor, workers.map)))
    assert len(runs) == 1
