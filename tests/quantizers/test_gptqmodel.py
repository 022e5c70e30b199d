from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.quantizers.gptq import Gptq
from llamaconv.quantizers.gptqmodel import WORDWISE_BITS, WordwiseGptq
from llamaconv.quantizers.modes import quantizer_of_checkpoint
from llamaconv.quantizers.packing import CheckpointFormat
from tests.quantizers.gptq_weights import BITS, random_weight


def config(**changes: Any) -> dict[str, Any]:
    """As GPTQModel writes it, in part."""
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": True,
        "sym": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": ["gptqmodel:7.6.0"], "damp_percent": 0.05},
    } | changes


@pytest.mark.interop
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("kind", ["from_0", "from_1"])
@pytest.mark.parametrize("method", ["pack_block", "pack_original"])
def test_weights_are_those_that_gptqmodel_dequantizes(
    packed_by_gptqmodel: dict[str, Tensor], method: str, kind: str, form: CheckpointFormat, bits: int
) -> None:
    """Of every width and both formats, in act-order and with zero points of 0; it rounds products to float16."""
    prefix = f"{kind}.{method}.{form}.{bits}."
    stored = {
        name.removeprefix(prefix): tensor for name, tensor in packed_by_gptqmodel.items() if name.startswith(prefix)
    }
    theirs = packed_by_gptqmodel[f"{kind}.{method}.{bits}.weight"]
    ours = quantizer_of_checkpoint(config(bits=bits, checkpoint_format=form)).read(stored).dequantize()
    assert theirs.dtype == torch.float16
    assert torch.equal(ours.half(), theirs)


@pytest.mark.parametrize(
    ("bits", "word", "zeros"),
    [
        (2, 0x0000005C, [1, 0, 3, 2, *[1] * 12]),
        (4, 0x00003F0F, [0, 2, 0, 5, *[1] * 4]),
        (8, 0x0003FF1F, [0x20, 0, 5, 1]),
    ],
)
def test_a_zero_point_of_0_borrows_from_the_one_above_it(bits: int, word: int, zeros: list[int]) -> None:
    """It is stored as all ones, and the one above it as 2 less than it is."""
    stored = random_weight(0, bits, "gptq").tensors()
    stored["qzeros"].fill_(word)
    assert WordwiseGptq(bits).read(stored).zeros[: 32 // bits, 0].tolist() == zeros


@given(st.sampled_from(WORDWISE_BITS), st.integers(0, 1000))
def test_any_zero_points_come_back(bits: int, seed: int) -> None:
    """Whatever borrows, also out of the word's end."""
    weight = random_weight(seed, bits, "gptq_v2", least_zero=0)
    stored = weight.tensors()
    ones = sum(1 << shift for shift in range(0, 32, bits))
    down = (stored["qzeros"].long() - ones) & 0xFFFFFFFF
    stored["qzeros"] = torch.where(down >= 1 << 31, down - (1 << 32), down).int()
    read = WordwiseGptq(bits).read(stored)
    assert torch.equal(read.zeros, weight.zeros)
    assert torch.equal(read.dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("changes", "wordwise"),
    [
        ({}, True),
        ({"meta": {"quantizer": "gptqmodel:4.0.0"}}, True),
        ({"meta": {"quantizer": ["optimum:2.3.0", "gptqmodel:7.6.0"]}}, True),
        ({"sym": True}, False),
        ({"bits": 3}, False),
        ({"checkpoint_format": "gptq_v2"}, False),
        ({"meta": {"quantizer": ["llamaconv:1.0.0"]}}, False),
        ({"meta": {"quantizer": None}}, False),
        ({"meta": ["gptqmodel:7.6.0"]}, False),
        ({"meta": None}, False),
    ],
)
def test_only_where_gptqmodel_counted_words_down_are_they_counted_up(changes: dict[str, Any], wordwise: bool) -> None:
    """Told from the writer that the configuration names."""
    assert isinstance(quantizer_of_checkpoint(config(**changes)), WordwiseGptq if wordwise else Gptq)


def test_the_reader_says_what_it_reads() -> None:
    """As the quantizer of the same format does."""
    reader, quantizer = (quantizer_of_checkpoint(config(sym=sym)) for sym in (False, True))
    assert (reader.mode, reader.bits, reader.marker) == (quantizer.mode, quantizer.bits, quantizer.marker)
    assert reader.suffixes == quantizer.suffixes
