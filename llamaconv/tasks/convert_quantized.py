"""GPTQ weights between Hugging Face's layout and lit-llama's, as they are."""

from __future__ import annotations

from typing import Any

from llamaconv.errors import UnsupportedError
from llamaconv.layouts.hugging_face import HEAD
from llamaconv.layouts.known import HUGGING_FACE
from llamaconv.layouts.quantized import QuantizedLayer
from llamaconv.layouts.rules import EMBEDDING, Layout
from llamaconv.plan.base import Step
from llamaconv.plan.conversion import repacking_steps
from llamaconv.quantizers.packing import CheckpointFormat
from llamaconv.tasks.provenance import version
from llamaconv.tasks.source import Source

__all__ = ["from_lit_llama", "to_lit_llama"]

_LOADED_BITS = (4, 8)
_HEAD = HEAD.removesuffix(".weight")  # the same in both layouts


def to_lit_llama(source: Source, layout: Layout) -> tuple[tuple[Step, ...], int]:
    """What brings a GPTQ checkpoint into lit-llama's packing, and the width of its codes.

    Raises:
        UnsupportedError: lit-llama's loader does not take it; all facts are listed.
    """
    facts = _facts(source, layout)
    if facts:
        raise UnsupportedError(
            f"The layout {layout.name} does not hold weights that are quantized as these are:\n" + "\n".join(facts),
            hint="--dequantize makes dense weights of them. For lit-llama, quantize the dense checkpoint with "
            "`llamaconv quantize --mode gptq.int4 --group-size -1 --lm-head --layout lit-llama`.",
            layout=layout.name,
            obstacles=facts,
        )
    dequantizer = source.dequantizer
    assert dequantizer is not None
    rules = layout.rules(source.config)
    return repacking_steps(source.stored, rules, _by_weight(source), dequantizer, "col-block"), dequantizer.bits


def from_lit_llama(source: Source) -> tuple[tuple[Step, ...], dict[str, Any]]:
    """What brings lit-llama's quantized weights into GPTQ's own format, and the configuration that describes them.

    Raises:
        UnsupportedError: The file quantizes some layers and not others.
    """
    layers, dequantizer = _by_weight(source), source.dequantizer
    assert dequantizer is not None
    quantized = [name for rule in source.rules if all(local in layers for local in rule.local) for name in rule.hub]
    dense = [f"{name} is dense" for name in _matrices(source) if name not in quantized]
    if dense:
        raise UnsupportedError(
            f"{source.checkpoint.directory}: only some layers are quantized:\n" + "\n".join(dense),
            hint="--dequantize makes dense weights of all.",
        )
    groups = _group_size(source)
    vocabulary = source.config.vocab_size  # padding below it is cut off
    zeros = [source.stored[f"{layer.name}.zeros"].read() for layer in source.layers if layer.name != _HEAD]
    zeros.append(source.stored[f"{_HEAD}.zeros"].read()[:vocabulary])
    middle = 1 << (dequantizer.bits - 1)
    # The first format stores zero points less one, and has no place for 0.
    packing: CheckpointFormat = "gptq_v2" if any(bool((part < 1).any()) for part in zeros) else "gptq"
    rules = [rule.inverse() for rule in source.rules]
    steps = repacking_steps(source.stored, rules, layers, dequantizer, packing)
    return steps, _configuration(
        dequantizer.bits,
        groups,
        all(bool((part == middle).all()) for part in zeros),
        packing,
        sorted(set(map(_leaf, quantized))),
    )


def _group_size(source: Source) -> int:
    """Columns that share a scale, -1 for all of a row: one number for all layers, as GPTQ's configuration has it.

    Raises:
        UnsupportedError: It is not one, or GPTQ's words of 32 bits do not take the weights; all facts are listed.
    """
    sizes: dict[int, str] = {}
    facts = []
    for layer in source.layers:
        assert layer.weight is not None
        rows, columns = layer.weight.shape
        rows = source.config.vocab_size if layer.name == _HEAD else rows
        sizes.setdefault(-1 if layer.groups == 1 else columns // (layer.groups or 1), layer.name)
        if rows % 32 or columns % 32:
            facts.append(f"{layer.weight.name} has {rows} rows of {columns}; GPTQ packs multiples of 32")
    if len(sizes) > 1:
        told = ", ".join(f"{size} in {name}" for size, name in sizes.items())
        facts.append(f"groups of different sizes ({told}); GPTQ's configuration has one")
    if facts:
        raise UnsupportedError(
            f"{source.checkpoint.directory}: GPTQ's own format does not hold it:\n" + "\n".join(facts),
            hint="--dequantize makes dense weights of it.",
        )
    return next(iter(sizes))


def _facts(source: Source, layout: Layout) -> list[str]:
    """Why lit-llama's loader does not take the weights as they are quantized, one fact each."""
    if layout.name != "lit-llama":
        return ["it has dense weights only"]
    if source.layout is not HUGGING_FACE:
        return ["they are in its own format already: copy the folder"]
    quantization, layers = source.quantization or {}, _by_weight(source)
    if quantization.get("quant_method") != "gptq":
        return [f"quantized by {quantization.get('quant_method')}; it loads GPTQ"]
    facts = []
    bits = sorted({layer.bits or 0 for layer in source.layers})
    if not set(bits) <= set(_LOADED_BITS):
        facts.append(f"codes of {', '.join(map(str, bits))} bits; it loads 4 and 8")
    groups = max(layer.groups or 1 for layer in source.layers)
    if groups > 1:
        facts.append(f"up to {groups} groups of columns in a row; it loads one")
    if source.config.tied:
        facts.append(f"{HEAD} is tied to the embedding; it loads a quantized head of its own")
    dense = [name for name in _matrices(source) if name not in layers and not (source.config.tied and name == HEAD)]
    return facts + [f"{name} is dense; it loads a quantized one" for name in dense]


def _matrices(source: Source) -> list[str]:
    """The weights that lit-llama quantizes: all matrices but the embedding, by Hugging Face's names."""
    specs = source.tensors().specs
    return [name for name, spec in specs.items() if len(spec.shape) == 2 and name != EMBEDDING]


def _by_weight(source: Source) -> dict[str, QuantizedLayer]:
    return {layer.weight.name: layer for layer in source.layers if layer.weight is not None}


def _leaf(weight: str) -> str:
    """A layer's name inside its block, or the head's."""
    return ".".join(weight.split(".")[3:-1]) or weight.removesuffix(".weight")


def _configuration(
    bits: int, group_size: int, symmetric: bool, packing: CheckpointFormat, names: list[str]
) -> dict[str, Any]:
    """``quantization_config``, as GPTQ's readers want it."""
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": False,
        "sym": symmetric,
        "checkpoint_format": packing,
        "true_sequential": True,
        "static_groups": False,
        "lm_head": True,
        "modules_in_block_to_quantize": [[name] for name in names],
        "meta": {"quantizer": [f"llamaconv:{version()}"]},
    }
