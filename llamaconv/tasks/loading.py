"""A model ready to run block by block: checkpoint opened, config checked against it, skeleton built."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig, read_config, with_both_rope_forms
from llamaconv.digests import sha256_bytes
from llamaconv.errors import ConfigError, UnsupportedError, UsageError
from llamaconv.json_files import read_object
from llamaconv.layouts.hugging_face import disagreements, expected_tensors, is_derived
from llamaconv.layouts.quantized import QuantizedLayer, as_if_dense, quantized_layers
from llamaconv.model.skeleton import Skeleton
from llamaconv.model.workers import Workers
from llamaconv.quantizers.base import Quantizer
from llamaconv.quantizers.modes import quantizer_of_checkpoint
from llamaconv.sinks.safetensors import tensor_bytes
from llamaconv.sources.open import Checkpoint, open_checkpoint
from llamaconv.tensors import TensorSpec

__all__ = [
    "LoadedModel",
    "choose_device",
    "choose_dtype",
    "choose_workers",
    "load_dense_model",
    "load_model",
    "named_dtype",
]

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint whose config and tensors agree.

    Attributes:
        checkpoint: Where it lies and how its tensors are read.
        config: Its config.json.
        skeleton: The transformers model on the meta device.
        quantizer: What its quantized layers are stored with, None if it is dense.
        specs: The tensors it would hold if it were dense: a quantized layer counts as its ``weight``.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    skeleton: Skeleton
    quantizer: Quantizer | None
    specs: Mapping[str, TensorSpec]


def load_model(path: Path, compute_dtype: str) -> LoadedModel:
    """Open a checkpoint directory or file; nothing but headers and config is read.

    Args:
        path: Directory, safetensors file or index.json.
        compute_dtype: ``"auto"`` or a dtype's name, of the skeleton.

    Raises:
        InputError: Anything missing, malformed, unsupported or in disagreement; all disagreements are listed.
    """
    checkpoint = open_checkpoint(path)
    return _load(checkpoint, read_config(checkpoint.directory), compute_dtype)


def _load(checkpoint: Checkpoint, config: ModelConfig, compute_dtype: str) -> LoadedModel:
    stored = checkpoint.reader.specs
    quantization = _quantization(checkpoint, config)
    quantizer = None if quantization is None else quantizer_of_checkpoint(quantization)
    layers = tuple(quantized_layers(stored))
    dense = as_if_dense(stored, layers)
    specs = {name: spec for name, spec in dense.items() if not is_derived(name)}  # those follow from the config
    faults = [fault for layer in layers for fault in _storage_faults(layer, quantizer)]
    faults += disagreements(config, specs)
    if not faults:
        skeleton = Skeleton.build(with_both_rope_forms(config), choose_dtype(compute_dtype, config.dtype))
        if expected_tensors(config) is None:
            faults = _differences(skeleton, specs)
        faults += _dtype_faults(skeleton, specs)
        if not faults:
            return LoadedModel(checkpoint, config, skeleton, quantizer, specs)
    raise ConfigError(
        f"{checkpoint.directory / 'config.json'} and the tensors disagree:\n" + "\n".join(faults),
        hint="The checkpoint is incomplete, or its config.json belongs to another model.",
    )


def load_dense_model(path: Path, compute_dtype: str) -> LoadedModel:
    """As :func:`load_model`, for a checkpoint that is to be quantized.

    Raises:
        UnsupportedError: It is quantized already, by whatever method.
    """
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint.directory)
    quantization = _quantization(checkpoint, config)
    if quantization is not None:
        raise UnsupportedError(
            f"{checkpoint.directory}: already quantized ({_method(quantization)})",
            hint="Quantize the dense checkpoint it was made from.",
        )
    model = _load(checkpoint, config, compute_dtype)
    _warn_if_ties_differ(model)
    return model


def choose_dtype(name: str, stored: torch.dtype | None) -> torch.dtype:
    """The dtype that forwards run in.

    ``"auto"`` is the checkpoint's own where that is a 16-bit float with float32's range, else float32: float16
    overflows in the residual streams of many models.
    """
    if name == "auto":
        return torch.bfloat16 if stored == torch.bfloat16 else torch.float32
    return named_dtype(name)


def named_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16.

    Raises:
        UsageError: Anything else.
    """
    if name not in _DTYPES:
        raise UsageError(f"unknown dtype {name!r}", hint=f"Use one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def choose_device(name: str) -> torch.device:
    """``"auto"`` is the first CUDA device where there is one, else the CPU.

    Raises:
        UnsupportedError: A device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnsupportedError(f"no such device: {name!r}", hint="Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(f"device {name} is not available", hint="Use --device cpu.")
    return device


def choose_workers(threads: int | None) -> Workers:
    """One worker per core that this process may use, unless told otherwise."""
    return Workers(threads or torch.get_num_threads())


def _quantization(checkpoint: Checkpoint, config: ModelConfig) -> Mapping[str, Any] | None:
    """The quantization that config.json describes, or else quantize_config.json, as AutoGPTQ left it."""
    alone = checkpoint.directory / "quantize_config.json"
    if config.quantization is not None or not alone.exists():
        return config.quantization
    return {"quant_method": "gptq", **read_object(alone)[1]}


def _method(quantization: Mapping[str, Any]) -> str:
    try:
        return quantizer_of_checkpoint(quantization).mode
    except UnsupportedError:
        return str(quantization.get("quant_method", "by a method it does not name"))


def _warn_if_ties_differ(model: LoadedModel) -> None:
    """The config is trusted; where it ties two tensors that differ, both are kept and the user is told."""
    for head, embedding in model.skeleton.tie.items():
        if head in model.specs and embedding in model.specs:
            digests = [sha256_bytes(tensor_bytes(model.checkpoint.reader[name].read())) for name in (head, embedding)]
            if digests[0] != digests[1]:
                logger.warning(
                    "config.json ties %s (sha256 %.12s) to %s (sha256 %.12s), but they differ; both are kept",
                    *(head, digests[0], embedding, digests[1]),
                )


def _storage_faults(layer: QuantizedLayer, quantizer: Quantizer | None) -> Iterator[str]:
    if quantizer is None or layer.storage.marker != quantizer.marker:
        yield f"{layer.name} is stored as {layer.storage.method}, which config.json does not say"
    elif layer.weight is None:
        yield f"{layer.name}: {', '.join(layer.parts)} do not go together"
    elif layer.bits != quantizer.bits:
        yield f"{layer.name}: codes of {layer.bits} bits in the checkpoint, of {quantizer.bits} by config.json"


def _dtype_faults(skeleton: Skeleton, specs: Mapping[str, TensorSpec]) -> list[str]:
    names = (name for name, _ in skeleton.model.named_parameters(remove_duplicate=False) if name in specs)
    return [
        f"{specs[name]}: not a dtype that a dense weight is kept in; float32, bfloat16 and float16 are"
        for name in names
        if specs[name].dtype not in (torch.float64, *_DTYPES.values())
    ]


def _differences(skeleton: Skeleton, specs: Mapping[str, TensorSpec]) -> list[str]:
    """Where the checkpoint and transformers' own model class disagree, for families without a table of ours."""
    wanted = {name: tuple(p.shape) for name, p in skeleton.model.named_parameters(remove_duplicate=False)}
    wanted |= {name: tuple(b.shape) for name, b in skeleton.model.state_dict().items() if name not in wanted}
    optional = {name for name in skeleton.tie if skeleton.tie[name] in specs}
    faults = [
        f"{name}: missing from the checkpoint, {list(shape)} by config.json"
        for name, shape in wanted.items()
        if name not in specs and name not in optional
    ]
    faults += [f"{name}: not in the model that config.json describes" for name in specs if name not in wanted]
    return faults + [
        f"{name}: {list(specs[name].shape)} in the checkpoint, {list(shape)} by config.json"
        for name, shape in wanted.items()
        if name in specs and specs[name].shape != shape
    ]
