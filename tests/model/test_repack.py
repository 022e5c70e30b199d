"""Quantized weights between GPTQ's packing and lit-llama's: the same codes in other bytes and another order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llamaconv.errors import UnsupportedError
from llamaconv.layouts.attention import Rotary
from llamaconv.layouts.operations import Chain, Concat, Identity, Operation, Pad, Parallel
from llamaconv.layouts.quantized import quantized_layers
from llamaconv.layouts.ranks import Divide
from llamaconv.layouts.rules import Rule
from llamaconv.model.repack import Packing, Repack
from llamaconv.model.stream import Stream
from llamaconv.model.workers import Workers
from llamaconv.quantizers.base import Dequantizer
from llamaconv.quantizers.col_block import ColBlock
from llamaconv.quantizers.modes import quantizer_of_checkpoint
from llamaconv.quantizers.packing import GptqWeight
from llamaconv.tensors import TensorSpec
from tests.layouts.in_memory import InMemory
from tests.quantizers.gptq_weights import random_weight

ATTENTION = "transformer.h.0.attn.c_attn"
FUSED = Chain((Parallel((Rotary(2, True), Rotary(2, True), Identity())), Concat((64, 64, 64))))
EMBEDDING = {"transformer.wte.weight": torch.zeros(5, 64)}  # whose width tells that of codes


def weight(seed: int, bits: int = 4, rows: int = 64, groups: int = 2, **changes: Any) -> GptqWeight:
    """[rows, 64] of random codes; groups are runs of columns."""
    made = random_weight(seed, bits, "gptq", rows=rows)
    index = torch.arange(64, dtype=torch.int32) // (64 // groups)
    parts = {"scales": made.scales[:, :groups], "zeros": made.zeros[:, :groups], "group_index": index, **changes}
    return replace(made, **parts)


def stored(weights: Mapping[str, GptqWeight]) -> InMemory:
    tensors: dict[str, Tensor] = {}
    for name, gptq in weights.items():
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in gptq.tensors().items()}
    return InMemory(tensors)


def reads(bits: int, form: str = "gptq") -> Dequantizer:
    return quantizer_of_checkpoint(
        {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": False, "checkpoint_format": form}
    )


def run(
    reader: InMemory,
    operation: Operation,
    names: tuple[str, ...],
    to: tuple[str, ...],
    read: Dequantizer,
    packing: Packing,
) -> dict[str, Tensor]:
    """What comes of it, which must be what was announced."""
    layers = {layer.weight.name: layer for layer in quantized_layers(reader.specs) if layer.weight is not None}
    rule = Rule(tuple(f"{name}.weight" for name in names), tuple(f"{name}.weight" for name in to), operation)
    repack = Repack(rule, {name: layers[name] for name in rule.hub}, read, packing)
    assert set(repack.reads) == {name for name in reader.specs if name.rpartition(".")[0] in names}
    with Workers(1) as workers:
        made = dict(repack({name: reader[name] for name in repack.reads}, Stream(workers)))
    assert {name: TensorSpec.of(name, tensor) for name, tensor in made.items()} == {
        spec.name: spec for spec in repack.writes
    }
    assert repack.peak_bytes >= sum(tensor.nbytes for tensor in made.values())
    return made


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 2])
def test_fused_codes_stand_for_the_fused_weights(bits: int, groups: int) -> None:
    """In lit-llama's bytes, in Meta's order of rows, as the dense weights would be; and back, bit for bit."""
    weights = {f"{part}_proj": weight(seed, bits, groups=groups) for seed, part in enumerate("qkv")}
    names = tuple(weights)
    there = run(stored(weights), FUSED, names, (ATTENTION,), reads(bits), "col-block")
    read = ColBlock(bits)
    dense = read.read({name.removeprefix(f"{ATTENTION}."): tensor for name, tensor in there.items()}).dequantize()
    (expected,) = FUSED.apply(tuple(gptq.dequantize() for gptq in weights.values()))
    assert torch.equal(dense, expected)
    back = run(InMemory(there | EMBEDDING), FUSED.inverse(), (ATTENTION,), names, read, "gptq")
    assert back.keys() == stored(weights).specs.keys()
    assert all(torch.equal(tensor, stored(weights)[name].read()) for name, tensor in back.items())


def test_padding_has_no_codes() -> None:
    """Rows that a layout adds are zeros, and cut off again they are gone."""
    weights = {"head": weight(3, rows=64, groups=1)}
    there = run(stored(weights), Pad(64, 80), ("head",), ("lm_head",), reads(4), "col-block")
    assert there["lm_head.quant_weight"].shape == (80, 32)
    assert not any(tensor[64:].any() for tensor in there.values())
    back = run(InMemory(there | EMBEDDING), Pad(64, 80).inverse(), ("lm_head",), ("head",), ColBlock(4), "gptq")
    assert all(torch.equal(tensor, stored(weights)[name].read()) for name, tensor in back.items())


def test_zero_points_of_zero_take_the_second_format() -> None:
    """Which stores them as they are; the first cannot."""
    gptq = weight(5, groups=1, zeros=torch.zeros(64, 1, dtype=torch.uint8), format="gptq_v2")
    there = run(stored({"a": gptq}), Identity(), ("a",), ("lm_head",), reads(4, "gptq_v2"), "col-block")
    back = run(InMemory(there | EMBEDDING), Identity(), ("lm_head",), ("a",), ColBlock(4), "gptq_v2")
    assert all(torch.equal(tensor, stored({"a": gptq})[name].read()) for name, tensor in back.items())


def test_older_files_without_g_idx_have_their_groups_in_order() -> None:
    """As if it were there."""
    whole = stored({"a": weight(6)})
    bare = InMemory({name: whole[name].read() for name in whole.specs if not name.endswith("g_idx")})
    one, two = (run(reader, Identity(), ("a",), ("lm_head",), reads(4), "col-block") for reader in (whole, bare))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_weights_of_different_groups_do_not_become_one() -> None:
    """What differs is said."""
    mixed = {"a": weight(1), "b": weight(2, group_index=torch.arange(64, dtype=torch.int32) % 2)}
    with pytest.raises(
        UnsupportedError, match=r"^2 quantized weights differ in their g_idx, so they cannot become one$"
    ):
        run(stored(mixed), Concat((64, 64)), ("a", "b"), ("c",), reads(4), "col-block")
    with pytest.raises(UnsupportedError, match=r"^only whole rows of a quantized weight can be moved$"):
        run(stored({"a": weight(1)}), Divide(2, 1), ("a",), ("b", "c"), reads(4), "col-block")


def test_what_the_packing_cannot_hold_names_the_layer() -> None:
    """Scales that float16 would round."""
    there = run(stored({"a": weight(7, groups=1)}), Identity(), ("a",), ("lm_head",), reads(4), "col-block")
    there["lm_head.scales"] *= 1.0001
    with pytest.raises(
        UnsupportedError, match=r"^lm_head: GPTQ's format does not hold it: .* scales are not exact in float16"
    ):
        run(InMemory(there | EMBEDDING), Identity(), ("lm_head",), ("a",), ColBlock(4), "gptq")
