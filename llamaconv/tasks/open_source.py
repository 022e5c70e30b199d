"""Open a checkpoint in any layout, told by its tensors' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamaconv.config import ModelConfig, read_config
from llamaconv.errors import CheckpointError, ConfigError, UnsupportedError, UsageError
from llamaconv.json_files import read_object
from llamaconv.layouts.description import Given
from llamaconv.layouts.hugging_face import disagreements, is_derived
from llamaconv.layouts.known import HUGGING_FACE, LAYOUTS, nearest, recognized
from llamaconv.layouts.quantized import QuantizedLayer, quantized_layers
from llamaconv.layouts.rules import Layout
from llamaconv.quantizers.base import Dequantizer
from llamaconv.sources.base import one_per_line
from llamaconv.sources.open import Checkpoint, open_checkpoint
from llamaconv.tasks.source import Source
from llamaconv.tasks.source_native import open_native

__all__ = ["layout_of", "open_source"]


def open_source(path: Path, layout: str | None = None, given: Given | None = None) -> Source:
    """Open a checkpoint; headers and descriptions are read, and tensors only where two should be one.

    Args:
        path: Directory, weight file or index.json.
        layout: Its name, None to tell it from the tensors' names.
        given: What the user states of the model.

    Raises:
        InputError: Anything missing, malformed, unknown or in disagreement; all disagreements are listed.
        UsageError: Facts are stated for a checkpoint that carries them.
    """
    checkpoint = open_checkpoint(path, prefer=layout)
    given = given or Given()
    chosen = LAYOUTS[layout] if layout else layout_of(checkpoint)
    if chosen is not HUGGING_FACE:
        return open_native(checkpoint, chosen, given)
    if given != Given():
        raise UsageError(
            f"{checkpoint.directory}: its config.json says what the model is.",
            hint="Facts are stated for layouts that do not carry them; change config.json itself.",
        )
    return _hugging_face(checkpoint, read_config(checkpoint.directory))


def layout_of(checkpoint: Checkpoint) -> Layout:
    """The layout that the tensors' names tell.

    Raises:
        CheckpointError: None; the nearest is named.
    """
    names = checkpoint.reader.specs
    found = recognized(names)
    if found is not None:
        return found
    if (checkpoint.directory / "config.json").exists():
        return HUGGING_FACE  # a family that we have no table of
    layout, shared, modules = nearest(names)
    near = f"The nearest is {layout.name}: {shared} of {modules} modules have names of it."
    raise CheckpointError(
        f"{checkpoint.directory}: no layout is known in which tensors have such names "
        f"({', '.join(map(repr, list(names)[:3]))}{', …' if len(names) > 3 else ''}).",
        hint=near if shared else f"Known are {', '.join(LAYOUTS)}; no name is one of theirs.",
        nearest=layout.name if shared else None,
    )


def _hugging_face(checkpoint: Checkpoint, config: ModelConfig) -> Source:
    layers = tuple(quantized_layers(checkpoint.reader.specs))
    alone = checkpoint.directory / "quantize_config.json"
    beside = alone if alone.is_file() else None
    quantization = _quantization(config, beside)
    description = checkpoint.directory / "config.json"
    source = Source(checkpoint, HUGGING_FACE, config, (), layers, description, (), quantization, beside)
    try:
        dequantizer = source.dequantizer
    except UnsupportedError:
        return source  # what nobody reads may still be copied
    faults = [fault for layer in layers for fault in _storage_faults(layer, dequantizer)]
    specs = source.tensors().specs
    faults += disagreements(config, {name: spec for name, spec in specs.items() if not is_derived(name)})
    if faults:
        raise ConfigError(
            f"{description} and the tensors disagree:\n" + one_per_line(faults),
            hint="The checkpoint is incomplete, or its config.json belongs to another model.",
            file=str(description),
        )
    return source


def _quantization(config: ModelConfig, alone: Path | None) -> Mapping[str, Any] | None:
    """The quantization that config.json describes, or else quantize_config.json, as AutoGPTQ left it."""
    if config.quantization is not None or alone is None:
        return config.quantization
    return {"quant_method": "gptq", **read_object(alone)[1]}


def _storage_faults(layer: QuantizedLayer, dequantizer: Dequantizer | None) -> Iterator[str]:
    if dequantizer is None or layer.storage.marker != dequantizer.marker:
        yield f"{layer.name} is stored as {layer.storage.method}, which config.json does not say"
    elif layer.weight is None:
        yield f"{layer.name}: {', '.join(layer.parts)} do not go together"
    elif layer.bits != dequantizer.bits:
        yield f"{layer.name}: codes of {layer.bits} bits in the checkpoint, of {dequantizer.bits} by config.json"
