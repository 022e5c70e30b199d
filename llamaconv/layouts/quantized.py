"""How quantized layers are stored, and the weights they stand for, from names and shapes alone.

Sources: AutoGPTQ 0.7.1 ``nn_modules/qlinear``, bitsandbytes 0.50 ``nn/modules.py`` and ``functional.py``
(``QuantState.as_dict``), lit-llama 2023-06 ``lit_llama/quantization.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from llamaconv.tensors import TensorSpec

__all__ = ["STORAGES", "QuantizedLayer", "Storage", "as_if_dense", "quantized_layers"]

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer whose weight [N, K] is stored quantized.

    Attributes:
        name: The layer's name.
        storage: How it is stored.
        parts: Full names of the tensors that stand for the weight.
        bits: Of a code.
        groups: How many groups of inputs have scales of their own; None where the headers do not tell.
        weight: The spec of the weight; of shape [N * K] where the headers do not tell N and K. Its dtype is
            float16. None if the parts do not go together.
    """

    name: str
    storage: Storage
    parts: tuple[str, ...]
    bits: int | None
    groups: int | None
    weight: TensorSpec | None


@dataclass(frozen=True)
class Storage:
    """A way to store a quantized weight.

    Attributes:
        method: ``quant_method`` in the configuration; lit-llama has none.
        marker: The suffix that every layer stored this way has, and no other.
        suffixes: All suffixes of its parts, as they follow the layer's name, the codes' first. A bias is not a part.
        measure: From the parts by suffix and the whole checkpoint, the weight's shape, its bits and its number of
            groups. Raises KeyError or ValueError if the parts do not go together.
    """

    method: str
    marker: str
    suffixes: tuple[str, ...]
    measure: Callable[[Specs, Specs], tuple[tuple[int, ...], int, int | None]]

    @property
    def codes(self) -> str:
        """The suffix of the tensor of codes. Its dtype may be any: NaN means nothing there."""
        return self.suffixes[0]


def _measure_gptq(parts: Specs, checkpoint: Specs) -> tuple[tuple[int, ...], int, int | None]:
    """qweight int32 [K/32*b, N], qzeros int32 [G, N/32*b], scales [G, N], g_idx [K]."""
    (words, rows), (groups, zero_words) = parts["qweight"].shape, parts["qzeros"].shape
    bits, remainder = divmod(zero_words * 32, rows or 1)
    if remainder or bits not in (2, 3, 4, 8) or words * 32 % bits or parts["scales"].shape != (groups, rows):
        raise ValueError
    columns = words * 32 // bits
    if "g_idx" in parts and parts["g_idx"].shape != (columns,):
        raise ValueError
    if (parts["qweight"].dtype, parts["qzeros"].dtype) != (torch.int32, torch.int32):
        raise ValueError
    return (rows, columns), bits, groups


def _measure_int8(parts: Specs, checkpoint: Specs) -> tuple[tuple[int, ...], int, int | None]:
    """weight [N, K], SCB [N]."""
    rows, columns = parts["weight"].shape
    if parts["SCB"].shape != (rows,):
        raise ValueError
    return (rows, columns), 8, None


def _measure_4bit(parts: Specs, checkpoint: Specs) -> tuple[tuple[int, ...], int, int | None]:
    """weight [N*K/2, 1], or as many bytes in a wider dtype; N and K are in the data of quant_state."""
    return (parts["weight"].nbytes * 2,), 4, None


def _measure_column_blocks(parts: Specs, checkpoint: Specs) -> tuple[tuple[int, ...], int, int | None]:
    """quant_weight uint8 [N, K/(8/b)], scales and zeros [N, G]."""
    (rows, width), (_, groups) = parts["quant_weight"].shape, parts["scales"].shape
    bits = _column_block_bits(checkpoint)
    columns = width * 8 // bits
    fits = parts["scales"].shape == parts["zeros"].shape == (rows, groups) and not columns % (groups or columns + 1)
    if not fits or parts["quant_weight"].dtype != torch.uint8:
        raise ValueError
    return (rows, columns), bits, groups


def _column_block_bits(checkpoint: Specs) -> int:
    """Of all codes: by the layers whose inputs are as wide as the embedding, which is never quantized."""
    _, width = checkpoint["transformer.wte.weight"].shape
    for layer in ("lm_head", "transformer.h.0.attn.c_attn"):
        if f"{layer}.quant_weight" in checkpoint:
            _, stored = checkpoint[f"{layer}.quant_weight"].shape
            bits, remainder = divmod(stored * 8, width or 1)
            if not remainder and bits in (2, 4, 8):
                return bits
    raise ValueError


_STATE = "weight.quant_state.bitsandbytes__"
_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")

STORAGES = (
    Storage("gptq", "qweight", ("qweight", "qzeros", "scales", "g_idx"), _measure_gptq),
    Storage("bitsandbytes", "SCB", ("weight", "SCB", "weight_format"), _measure_int8),
    Storage(
        "bitsandbytes",
        "weight.absmax",
        ("weight", "weight.absmax", "weight.quant_map", *_NESTED, _STATE + "nf4", _STATE + "fp4"),
        _measure_4bit,
    ),
    Storage("lit-llama-gptq", "quant_weight", ("quant_weight", "scales", "zeros"), _measure_column_blocks),
)


def quantized_layers(specs: Mapping[str, TensorSpec]) -> Iterator[QuantizedLayer]:
    """The quantized layers of a checkpoint, in its order."""
    for name in specs:
        for storage in STORAGES:
            if name.endswith(f".{storage.marker}"):
                yield _layer(name.removesuffix(f".{storage.marker}"), storage, specs)


def as_if_dense(specs: Mapping[str, TensorSpec], layers: Sequence[QuantizedLayer]) -> Mapping[str, TensorSpec]:
    """The tensors that the checkpoint would hold if its ``layers`` were dense."""
    parts = {part for layer in layers for part in layer.parts}
    dense = {name: spec for name, spec in specs.items() if name not in parts}
    return dense | {layer.weight.name: layer.weight for layer in layers if layer.weight is not None}


def _layer(name: str, storage: Storage, specs: Mapping[str, TensorSpec]) -> QuantizedLayer:
    parts = {suffix: specs[full] for suffix in storage.suffixes if (full := f"{name}.{suffix}") in specs}
    names = tuple(spec.name for spec in parts.values())
    try:
        shape, bits, groups = storage.measure(parts, specs)
    except (KeyError, ValueError):
        return QuantizedLayer(name, storage, names, None, None, None)
    weight = TensorSpec(f"{name}.weight", shape, torch.float16)
    return QuantizedLayer(name, storage, names, bits, groups, weight)
