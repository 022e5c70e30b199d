"""Quantized layers are found, and the weights they stand for measured, by names and shapes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llamaconv.layouts.quantized import as_if_dense, quantized_layers
from llamaconv.quantizers.modes import quantizer_for_mode
from llamaconv.quantizers.names import MODES
from llamaconv.tensors import TensorSpec

LAYERS = {"lm_head": 48, "transformer.h.0.attn.c_attn": 96, "transformer.h.0.mlp.c_proj": 32}
"""Rows of layers of lit-llama's."""

_GPTQ = {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16, "g_idx": torch.int32}


def _gptq(bits: int, **changed: tuple[int, ...]) -> dict[str, TensorSpec]:
    """The layer a.b of a weight [64, 96] in groups of 32."""
    shapes = {"qweight": (3 * bits, 64), "qzeros": (3, 2 * bits), "scales": (3, 64), "g_idx": (96,)} | changed
    return {f"a.b.{leaf}": TensorSpec(f"a.b.{leaf}", shape, _GPTQ[leaf]) for leaf, shape in shapes.items() if shape}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("g_idx", [(96,), ()])
def test_gptq_is_measured(bits: int, g_idx: tuple[int, ...]) -> None:
    """Width, groups and both dimensions follow from qweight, qzeros and scales, whatever a config says."""
    (layer,) = quantized_layers(_gptq(bits, g_idx=g_idx))
    assert (layer.name, layer.storage.method, layer.bits, layer.groups) == ("a.b", "gptq", bits, 3)
    assert layer.weight == TensorSpec("a.b.weight", (64, 96), torch.float16)


@pytest.mark.parametrize(
    "changed",
    [
        {"qzeros": ()},
        {"qweight": (12, 63)},
        {"qweight": (11, 64, 1)},
        {"scales": (2, 64)},
        {"g_idx": (95,)},
        {"qzeros": (3, 10)},
        {"qzeros": (3, 0)},
        {"qweight": (96, 8), "qzeros": (3, 8)},  # AWQ: packed along the outputs
    ],
)
def test_parts_that_do_not_go_together_have_no_weight(changed: dict[str, tuple[int, ...]]) -> None:
    """A layer whose tensors contradict each other is found, but nothing is made up for it."""
    (layer,) = quantized_layers(_gptq(4, **changed))
    assert (layer.name, layer.bits, layer.groups, layer.weight) == ("a.b", None, None, None)


def test_llm_int8_as_bitsandbytes_saves_it_is_measured() -> None:
    """A layer with SCB is 8 bits wide and has the shape of its codes."""
    from bitsandbytes.nn import Linear8bitLt

    layer = Linear8bitLt(32, 48, bias=True, has_fp16_weights=False)
    layer.load_state_dict(nn.Linear(32, 48, dtype=torch.float16).state_dict())
    specs = {f"l.{name}": TensorSpec.of(f"l.{name}", tensor) for name, tensor in layer.cpu().state_dict().items()}
    (found,) = quantized_layers(specs)
    assert (found.bits, found.weight) == (8, TensorSpec("l.weight", (48, 32), torch.float16))
    assert set(as_if_dense(specs, [found])) == {"l.weight", "l.bias"}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_four_bits_as_bitsandbytes_saves_them_are_counted(kind: str, nested: bool) -> None:
    """The headers tell how many weights there are, but not their shape."""
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(
        torch.randn(48, 40, dtype=torch.float16), blocksize=64, quant_type=kind, compress_statistics=nested
    )
    tensors = {"weight": codes, **{f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}}
    specs = {f"l.{name}": TensorSpec.of(f"l.{name}", tensor) for name, tensor in tensors.items()}
    (found,) = quantized_layers(specs)
    assert (found.bits, found.weight) == (4, TensorSpec("l.weight", (48 * 40,), torch.float16))
    assert set(found.parts) == set(specs)


@given(
    st.sampled_from(MODES),
    st.integers(1, 9).map(lambda n: 32 * n),
    st.integers(1, 9).map(lambda n: 32 * n),
    st.sampled_from([-1, 32]),
)
def test_what_our_quantizers_store_is_measured(mode: str, rows: int, columns: int, group: int) -> None:
    """The weight measured is the weight that was quantized, for every mode and shape."""
    weight = TensorSpec("a.b.weight", (rows, columns), torch.float16)
    specs = {spec.name: spec for spec in quantizer_for_mode(mode, group_size=group).specs("a.b", weight)}
    (layer,) = quantized_layers(specs)
    assert (layer.weight, set(layer.parts)) == (weight, set(specs))
    assert layer.bits == int(mode[-1])
    assert layer.groups in (None, 1 if group == -1 else columns // 32)


@pytest.mark.parametrize("dtypes", [{"qweight": torch.int16}, {"qzeros": torch.int64}])
def test_gptq_in_words_of_another_size_is_not_measured(dtypes: dict[str, torch.dtype]) -> None:
    """GPTQModel can pack into words of 8, 16 and 64 bits, of which other numbers of codes are in one."""
    specs = {
        name: replace(spec, dtype=dtypes.get(name.rpartition(".")[2], spec.dtype)) for name, spec in _gptq(4).items()
    }
    (layer,) = quantized_layers(specs)
    assert (layer.bits, layer.weight) == (None, None)


def _lit_llama(bits: int, groups: int = 1, **layers: int) -> dict[str, TensorSpec]:
    """Layers of so many rows of a model 32 wide, whose c_proj alone has 80 inputs, and its dense embedding."""
    specs = [TensorSpec("transformer.wte.weight", (48, 32), torch.bfloat16)]
    for layer, rows in layers.items():
        columns = 80 if layer.endswith("mlp.c_proj") else 32
        specs.append(TensorSpec(f"{layer}.quant_weight", (rows, columns * bits // 8), torch.uint8))
        specs += [TensorSpec(f"{layer}.{leaf}", (rows, groups), torch.bfloat16) for leaf in ("scales", "zeros")]
    return {spec.name: spec for spec in specs}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("anchor", ["lm_head", "transformer.h.0.attn.c_attn"])
def test_lit_llama_is_measured(bits: int, groups: int, anchor: str) -> None:
    """Bytes alone do not tell the width of a code: a layer that is as wide as the embedding does."""
    specs = _lit_llama(
        bits, groups, **{name: rows for name, rows in LAYERS.items() if "c_proj" in name or name == anchor}
    )
    found = {layer.name: layer for layer in quantized_layers(specs)}
    assert {(layer.storage.method, layer.bits, layer.groups) for layer in found.values()} == {
        ("lit-llama-gptq", bits, groups)
    }
    assert as_if_dense(specs, list(found.values())) == {
        "transformer.wte.weight": specs["transformer.wte.weight"],
        f"{anchor}.weight": TensorSpec(f"{anchor}.weight", (LAYERS[anchor], 32), torch.float16),
        "transformer.h.0.mlp.c_proj.weight": TensorSpec("transformer.h.0.mlp.c_proj.weight", (32, 80), torch.float16),
    }


@pytest.mark.parametrize(
    "changed",
    [
        TensorSpec("transformer.wte.weight", (48,), torch.bfloat16),
        TensorSpec("transformer.wte.weight", (48, 24), torch.bfloat16),
        TensorSpec("transformer.wte.weight", (48, 0), torch.bfloat16),
        TensorSpec("lm_head.quant_weight", (48, 16), torch.int32),
        TensorSpec("lm_head.quant_weight", (48, 12), torch.uint8),
        TensorSpec("lm_head.scales", (47, 1), torch.bfloat16),
        TensorSpec("lm_head.zeros", (48, 2), torch.bfloat16),
        TensorSpec("lm_head.scales", (48, 0), torch.bfloat16),
        None,
    ],
    ids=str,
)
def test_lit_llama_that_does_not_fit_the_embedding_has_no_weight(changed: TensorSpec | None) -> None:
    """Nothing is guessed: neither without an embedding, nor where the ratio to its width is no width of a code."""
    specs = _lit_llama(4, lm_head=48)
    if changed is None:
        del specs["transformer.wte.weight"]
    else:
        specs[changed.name] = changed
        if changed.shape == (48, 0) and changed.name.endswith("scales"):
            specs["lm_head.zeros"] = replace(changed, name="lm_head.zeros")
    (layer,) = quantized_layers(specs)
    assert (layer.name, layer.bits, layer.groups, layer.weight) == ("lm_head", None, None, None)


def test_dense_tensors_stay() -> None:
    """As if dense: each quantized layer is one weight, biases and all else stay as they are."""
    others = {
        name: TensorSpec(name, (64,), torch.bfloat16) for name in ("a.b.bias", "a.c.weight", "a.scales", "qweight")
    }
    specs = _gptq(4) | others
    dense = as_if_dense(specs, list(quantized_layers(specs)))
    assert dense == others | {"a.b.weight": TensorSpec("a.b.weight", (64, 96), torch.float16)}
