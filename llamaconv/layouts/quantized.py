"""How quantized layers are stored, and the weights they stand for, from names and shapes alone.

Sources: AutoGPTQ 0.7.1 ``nn_modules/qlinear``, bitsandbytes 0.50 ``nn/modules.py`` and ``functional.py``
(``QuantState.as_dict``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from llamaconv.tensors import TensorSpec

__all__ = ["STORAGES", "QuantizedLayer", "Storage", "as_if_dense", "quantized_layers"]


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
        method: ``quant_method`` in the configuration.
        marker: The suffix that every layer stored this way has, and no other.
        suffixes: All suffixes of its parts, as they follow the layer's name. A bias is not a part.
        measure: From the parts by suffix, the weight's shape, its bits and its number of groups. Raises
            KeyError or ValueError if the parts do not go together.
    """

    method: str
    marker: str
    suffixes: tuple[str, ...]
    measure: Callable[[Mapping[str, TensorSpec]], tuple[tuple[int, ...], int, int | None]]


def _measure_gptq(parts: Mapping[str, TensorSpec]) -> tuple[tuple[int, ...], int, int | None]:
    """qweight [K/32*b, N], qzeros [G, N/32*b], scales [G, N], g_idx [K]."""
    (words, rows), (groups, zero_words) = parts["qweight"].shape, parts["qzeros"].shape
    bits, remainder = divmod(zero_words * 32, rows or 1)
    if remainder or bits not in (2, 3, 4, 8) or words * 32 % bits or parts["scales"].shape != (groups, rows):
        raise ValueError
    columns = words * 32 // bits
    if "g_idx" in parts and parts["g_idx"].shape != (columns,):
        raise ValueError
    return (rows, columns), bits, groups


def _measure_int8(parts: Mapping[str, TensorSpec]) -> tuple[tuple[int, ...], int, int | None]:
    """weight [N, K], SCB [N]."""
    rows, columns = parts["weight"].shape
    if parts["SCB"].shape != (rows,):
        raise ValueError
    return (rows, columns), 8, None


def _measure_4bit(parts: Mapping[str, TensorSpec]) -> tuple[tuple[int, ...], int, int | None]:
    """weight [N*K/2, 1], or as many bytes in a wider dtype; N and K are in the data of quant_state."""
    return (parts["weight"].nbytes * 2,), 4, None


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
        shape, bits, groups = storage.measure(parts)
    except (KeyError, ValueError):
        return QuantizedLayer(name, storage, names, None, None, None)
    weight = TensorSpec(f"{name}.weight", shape, torch.float16)
    return QuantizedLayer(name, storage, names, bits, groups, weight)
