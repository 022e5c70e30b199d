from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llamaconv.errors import CheckpointError, NotFiniteError, NumericalError
from llamaconv.extents import Extent
from llamaconv.layouts.quantized import quantized_layers
from llamaconv.model.dense_view import DenseView
from llamaconv.quantizers.base import Dequantizer
from llamaconv.quantizers.bnb4 import STATES, Bnb4
from llamaconv.quantizers.col_block import ColBlock, ColBlockWeight
from llamaconv.quantizers.gptq import Gptq
from llamaconv.quantizers.grids import AffineGrid
from llamaconv.quantizers.llm_int8 import LlmInt8
from llamaconv.tensors import LazyTensor, TensorSpec
from tests.layouts.in_memory import InMemory
from tests.quantizers.bnb4_checkpoints import saved_by_bitsandbytes
from tests.quantizers.gptq_weights import random_weight
from tests.quantizers.problems import serial, weight

ROWS, COLUMNS = 96, 64


def parts_of(kind: str) -> tuple[Dequantizer, dict[str, Tensor]]:
    """What a weight [96, 64] is stored as, and its reader."""
    if kind == "gptq":
        return Gptq(AffineGrid(4, False), 32), random_weight(0, 4, "gptq", ROWS, COLUMNS).tensors()
    if kind == "llm.int8":
        return LlmInt8(), LlmInt8().quantize(weight(0, ROWS, COLUMNS), None, serial).tensors()
    if kind == "lit-llama":
        chosen = random_weight(0, 4, "gptq", ROWS, COLUMNS)
        grouped = replace(chosen, scales=chosen.scales[:, :1], zeros=chosen.zeros[:, :1])
        plain = replace(grouped, group_index=torch.zeros(COLUMNS, dtype=torch.int32))
        return ColBlock(4), ColBlockWeight.from_gptq(plain).tensors()
    storage = torch.bfloat16 if kind == "bnb in bfloat16" else torch.uint8
    return Bnb4(), saved_by_bitsandbytes(
        weight(0, ROWS, COLUMNS).bfloat16(),
        blocksize=64,
        quant_type="nf4",
        compress_statistics=True,
        quant_storage=storage,
    )


KINDS = ("gptq", "llm.int8", "lit-llama", "bnb", "bnb in bfloat16")


def checkpoint(parts: dict[str, Tensor], layer: str = "lm_head", **changes: Tensor) -> dict[str, Tensor]:
    """With a quantized layer that has a bias, and an embedding as wide as its inputs."""
    return {
        "transformer.wte.weight": weight(1, 80, COLUMNS).bfloat16(),
        **{f"{layer}.{suffix}": part for suffix, part in (parts | changes).items()},
        f"{layer}.bias": weight(2, ROWS, 1)[:, 0].half(),
    }


def view_of(
    tensors: dict[str, Tensor], dequantizer: Dequantizer | None, dtype: torch.dtype = torch.float32
) -> DenseView:
    reader = InMemory(tensors)
    return DenseView(reader, dequantizer, tuple(quantized_layers(reader.specs)), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_layer_is_its_dense_weight(kind: str, dtype: torch.dtype) -> None:
    """However it is stored: its shape is known before it is read, and its values are those that its reader gives."""
    dequantizer, parts = parts_of(kind)
    view = view_of(checkpoint(parts), dequantizer, dtype)
    assert dict(view.specs) == {
        "transformer.wte.weight": TensorSpec("transformer.wte.weight", (80, COLUMNS), torch.bfloat16),
        "lm_head.bias": TensorSpec("lm_head.bias", (ROWS,), torch.float16),
        "lm_head.weight": TensorSpec("lm_head.weight", (ROWS, COLUMNS), dtype),
    }
    lazy = view["lm_head.weight"]
    assert (lazy.spec, lazy.extents) == (view.specs["lm_head.weight"], ())
    assert TensorSpec.of("lm_head.weight", lazy.read()) == lazy.spec
    assert torch.equal(lazy.read(), dequantizer.read(parts).dequantize().to(dtype))
    assert torch.equal(view["lm_head.bias"].read(), weight(2, ROWS, 1)[:, 0].half())


def test_dense_tensors_are_handed_on() -> None:
    """With their extents, so that bytes can be copied; in their own dtype, whatever the others are read in."""
    extent = Extent(Path("model.safetensors"), 8, 4, (12, 0))
    lazy = LazyTensor(TensorSpec("norm.weight", (2,), torch.float16), lambda: torch.ones(2).half(), (extent,))

    class Reader(InMemory):
        files = (Path("model.safetensors"),)

        def __getitem__(self, name: str) -> LazyTensor:
            return {"norm.weight": lazy}[name]

    view = DenseView(Reader({"norm.weight": lazy.read()}), None, (), torch.bfloat16)
    assert view["norm.weight"] is lazy
    assert (dict(view.specs), view.files) == ({"norm.weight": lazy.spec}, Reader.files)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_is_stored_as_is_out_of_sight(kind: str) -> None:
    """Parts are not tensors of the dense checkpoint."""
    dequantizer, parts = parts_of(kind)
    view = view_of(checkpoint(parts), dequantizer)
    for suffix in parts:
        if suffix != "weight":
            with pytest.raises(KeyError):
                view[f"lm_head.{suffix}"]


def test_nan_among_the_scales_is_named() -> None:
    """By the stored tensor, since no other is to blame."""
    dequantizer, parts = parts_of("gptq")
    parts["scales"][1, 2:5] = math.nan
    with pytest.raises(NotFiniteError, match=r"^lm_head\.scales: 3 of 288 values are NaN or Inf$"):
        view_of(checkpoint(parts), dequantizer)["lm_head.weight"].read()


def test_codes_that_look_like_nan_are_codes() -> None:
    """Where bytes are kept as bfloat16, any two codes may look like it."""
    dequantizer, parts = parts_of("bnb in bfloat16")
    parts["weight"] = torch.full_like(parts["weight"], math.nan)
    dense = view_of(checkpoint(parts), dequantizer)["lm_head.weight"].read()
    assert torch.equal(dense, Bnb4().read(parts).dequantize())
    assert bool(torch.isfinite(dense).all())


def test_values_that_overflow_the_dtype_are_an_error() -> None:
    """Dequantized weights may be larger than any of their scales."""
    dequantizer, parts = parts_of("gptq")
    parts["scales"].fill_(60000.0)
    view = view_of(checkpoint(parts), dequantizer, torch.float16)
    with pytest.raises(NumericalError, match=r"^lm_head\.weight: \d+ of 6144 values overflow float16$"):
        view["lm_head.weight"].read()


def test_data_that_contradict_each_other_name_their_layer() -> None:
    """In each line of the error."""
    dequantizer, parts = parts_of("bnb")
    wrong = {"weight.quant_map": torch.ones(15), "weight.nested_absmax": torch.ones(2)}
    with pytest.raises(CheckpointError) as caught:
        view_of(checkpoint(parts, **wrong), dequantizer)["lm_head.weight"].read()
    assert caught.value.message.splitlines() == [
        "lm_head: quant_map [15] float32 where quant_map [16] float32 belongs",
        "lm_head: nested_absmax [2] float32 where nested_absmax [1] float32 belongs",
    ]


def test_shapes_that_cannot_be_told_are_all_named() -> None:
    """Before any weight is read."""
    dequantizer, parts = parts_of("bnb")
    tensors: dict[str, Tensor] = {}
    for layer, state in (("a.q", b"{}"), ("a.k", b"?"), ("a.v", None)):
        changed = {} if state is None else {STATES[0]: torch.tensor(list(state), dtype=torch.uint8)}
        tensors |= checkpoint(parts, layer, **changed)
    with pytest.raises(CheckpointError) as caught:
        view_of(tensors, dequantizer)
    assert caught.value.message.splitlines() == [
        "a.q: quant_state: quant_type is missing.",
        "a.q: quant_state: blocksize is missing.",
        "a.q: quant_state: dtype is missing.",
        "a.q: quant_state: shape is missing.",
        "a.k: quant_state: not JSON (Expecting value, line 1, column 1)",
    ]


@pytest.mark.parametrize("dequantizer", [None, LlmInt8()])
def test_a_layer_is_not_read_as_what_it_is_not(dequantizer: Dequantizer | None) -> None:
    """Its shape is known all the same, for messages that compare it with a configuration."""
    view = view_of(checkpoint(parts_of("gptq")[1]), dequantizer)
    assert view.specs["lm_head.weight"].shape == (ROWS, COLUMNS)
    with pytest.raises(ValueError, match=r"^lm_head is stored as gptq, which is not what it would be read as$"):
        view["lm_head.weight"].read()


def test_a_layer_whose_parts_do_not_go_together_has_no_weight() -> None:
    """It is for the caller to name it, with all else that is wrong."""
    dequantizer, parts = parts_of("gptq")
    view = view_of(checkpoint(parts, scales=torch.ones(2, 96).half()), dequantizer)
    assert list(view.specs) == ["transformer.wte.weight", "lm_head.bias"]


def test_reading_needs_neither_transformers_nor_numba() -> None:
    """Tasks that run no model do without them."""
    code = (
        "import sys\n"
        "import llamaconv.model.dense_view, llamaconv.quantizers.col_block, llamaconv.quantizers.row_moves\n"
        "print({'numba', 'transformers', 'bitsandbytes'} & set(sys.modules))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.stdout == "set()\n", child.stderr
