"""How a checkpoint is quantized: what its configuration says, and what its tensors' names and shapes say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from llamaconv.config import ModelConfig
from llamaconv.json_files import read_object, validated
from llamaconv.layouts.quantized import STORAGES, QuantizedLayer
from llamaconv.tensors import TensorSpec

__all__ = ["Quantization", "describe_quantization"]

# AutoGPTQ reads this file, transformers reads config.json.
_QUANTIZE_CONFIG = "quantize_config.json"


class _Keys(BaseModel):
    """The keys of a ``quantization_config`` that are looked at; methods other than GPTQ lack most of them."""

    model_config = ConfigDict(strict=True, extra="ignore")

    quant_method: str | None = None
    bits: int | float | None = None
    group_size: int | None = None
    sym: bool | None = None
    desc_act: bool | None = None
    checkpoint_format: str | None = None
    dynamic: dict[str, Any] | None = None
    load_in_8bit: bool | None = None
    load_in_4bit: bool | None = None
    bnb_4bit_quant_type: str | None = None
    bnb_4bit_use_double_quant: bool | None = None


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint is quantized.

    Attributes:
        method: ``gptq``, ``bitsandbytes``, or whatever the configuration calls it.
        bits: Of a code. A float where a method mixes widths.
        group_size, sym, desc_act, checkpoint_format, load_in_8bit, load_in_4bit, bnb_4bit_quant_type,
            bnb_4bit_use_double_quant: As the configuration has them, None where it does not.
        described_by: The files that say so; none where only the tensors do.
        layers: How many layers are stored quantized, as far as the method is known.
        share: Quantized weights over all weights of two or more axes in the blocks; None for an unknown method.
        known: Whether the method's tensors can be told from others.
    """

    method: str
    bits: float | None
    group_size: int | None
    sym: bool | None
    desc_act: bool | None
    checkpoint_format: str | None
    load_in_8bit: bool | None
    load_in_4bit: bool | None
    bnb_4bit_quant_type: str | None
    bnb_4bit_use_double_quant: bool | None
    described_by: tuple[str, ...]
    layers: int
    share: float | None
    known: bool

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return asdict(self) | {"described_by": list(self.described_by)}


def describe_quantization(
    directory: Path,
    config: ModelConfig | None,
    layers: Sequence[QuantizedLayer],
    dense: Mapping[str, TensorSpec],
) -> tuple[Quantization | None, list[str]]:
    """The quantization, None for a dense checkpoint, and what its descriptions and tensors say differently.

    Args:
        directory: Where config.json and quantize_config.json lie.
        config: The former.
        layers: The layers that are stored quantized.
        dense: The tensors, as if those layers were dense.

    Raises:
        ConfigError: A description is malformed.
    """
    described = {} if config is None else _descriptions(directory, config)
    if not described and not layers:
        return None, []
    faults = _conflicts(described)
    keys = _Keys(**{key: value for said in reversed(described.values()) for key, value in _set(said).items()})
    readable = [layer for layer in layers if layer.weight is not None]
    method = _method(keys, layers)
    known = method in {storage.method for storage in STORAGES}
    bits = keys.bits or _bits_by_flags(keys)
    if config is not None:
        faults += _layer_faults(method, bits, keys, layers if known else readable, bool(described))
    return (
        Quantization(
            method=method,
            bits=bits if bits is not None else _common_bits(readable),
            **keys.model_dump(exclude={"quant_method", "bits", "dynamic"}),
            described_by=tuple(described),
            layers=len(readable),
            share=_share(dense, readable) if known else None,
            known=known,
        ),
        faults,
    )


def _descriptions(directory: Path, config: ModelConfig) -> dict[str, _Keys]:
    """The descriptions by file name, the one that transformers reads first."""
    described = {}
    if config.quantization is not None:
        described["config.json"] = validated(_Keys, config.quantization, directory / "config.json")
    path = directory / _QUANTIZE_CONFIG
    if path.exists():
        described[_QUANTIZE_CONFIG] = validated(_Keys, read_object(path)[1], path)
    return described


def _set(keys: _Keys) -> dict[str, Any]:
    return keys.model_dump(exclude_none=True)


def _conflicts(described: Mapping[str, _Keys]) -> list[str]:
    if len(described) < 2:
        return []
    (first, ours), (second, theirs) = ((name, _set(keys)) for name, keys in described.items())
    return [
        f"{key} is {value!r} in {first}, {theirs[key]!r} in {second}"
        for key, value in ours.items()
        if key in theirs and theirs[key] != value
    ]


def _method(keys: _Keys, layers: Sequence[QuantizedLayer]) -> str:
    if keys.quant_method is not None:
        return keys.quant_method
    if keys.load_in_8bit or keys.load_in_4bit:  # configurations older than quant_method
        return "bitsandbytes"
    return layers[0].storage.method if layers else "unknown"


def _bits_by_flags(keys: _Keys) -> int | None:
    return 8 if keys.load_in_8bit else 4 if keys.load_in_4bit else None


def _common_bits(layers: Sequence[QuantizedLayer]) -> int | None:
    found = {layer.bits for layer in layers}
    return found.pop() if len(found) == 1 else None


def _layer_faults(
    method: str, bits: float | None, keys: _Keys, layers: Sequence[QuantizedLayer], described: bool
) -> list[str]:
    """What the layers' tensors contradict: the description, or each other."""
    stored = sorted({layer.storage.method for layer in layers})
    if not described:
        return [f"{len(layers)} layers are stored as {' and '.join(stored)}, but config.json does not say so"]
    if not layers:
        known = method in {storage.method for storage in STORAGES}
        return [f"quantized with {method} by config.json, but no layer is stored that way"] if known else []
    if stored != [method]:
        return [f"quantized with {method} by config.json, but layers are stored as {' and '.join(stored)}"]
    faults = []
    for layer in layers:
        if layer.weight is None:
            parts = ", ".join(part.removeprefix(f"{layer.name}.") for part in layer.parts)
            faults.append(f"{layer.name}: its tensors do not go together ({parts})")
        elif keys.dynamic:
            continue  # layers have settings of their own
        elif bits is not None and layer.bits != bits:
            faults.append(f"{layer.name}: bits: {layer.bits} in the checkpoint, {bits} by config.json")
        elif layer.groups is not None and keys.group_size is not None:
            columns = layer.weight.shape[1]
            groups = 1 if keys.group_size < 1 else -(-columns // keys.group_size)
            if layer.groups != groups:
                faults.append(f"{layer.name}: groups: {layer.groups} in the checkpoint, {groups} by config.json")
    return faults


def _share(dense: Mapping[str, TensorSpec], layers: Sequence[QuantizedLayer]) -> float:
    quantized = {layer.weight.name for layer in layers if layer.weight is not None}
    weights = {
        name: spec.numel
        for name, spec in dense.items()
        if _in_block(name) and (len(spec.shape) > 1 or name in quantized)
    }
    return sum(size for name, size in weights.items() if name in quantized) / (sum(weights.values()) or 1)


def _in_block(name: str) -> bool:
    """Blocks are the numbered part of a model."""
    return any(part.isdecimal() for part in name.split("."))
