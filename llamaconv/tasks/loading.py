"""A model ready to run block by block: checkpoint opened, config checked against it, skeleton built."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamaconv.casts import FLOATS, named_dtype
from llamaconv.config import ModelConfig, with_both_rope_forms
from llamaconv.digests import sha256_bytes
from llamaconv.errors import ConfigError, UnsupportedError
from llamaconv.layouts.hugging_face import expected_tensors, is_derived
from llamaconv.layouts.view import Tensors
from llamaconv.model.skeleton import Skeleton
from llamaconv.model.workers import Workers
from llamaconv.quantizers.modes import quantizer_of_checkpoint
from llamaconv.sinks.in_place import tensor_bytes
from llamaconv.tasks.open_source import open_source
from llamaconv.tasks.source import Source
from llamaconv.tensors import TensorSpec

__all__ = [
    "LoadedModel",
    "choose_device",
    "choose_dtype",
    "choose_workers",
    "load_dense_model",
    "load_model",
    "load_source",
    "open_dense",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint whose description and tensors agree, and the model that they make.

    Attributes:
        source: The checkpoint.
        skeleton: The transformers model on the meta device.
        tensors: Under Hugging Face's names, as if all layers were dense.
        specs: Theirs, without what follows from the config.
    """

    source: Source
    skeleton: Skeleton
    tensors: Tensors
    specs: Mapping[str, TensorSpec]

    @property
    def config(self) -> ModelConfig:
        """What the model is, as config.json."""
        return self.source.config


def load_model(path: Path, compute_dtype: str) -> LoadedModel:
    """Open a checkpoint in any layout; nothing but headers and its description is read.

    Args:
        path: Directory, weight file or index.json.
        compute_dtype: ``"auto"`` or a dtype's name, of the skeleton.

    Raises:
        InputError: Anything missing, malformed, unsupported or in disagreement; all disagreements are listed.
    """
    source = open_source(path)
    _tell(source)
    return load_source(source, compute_dtype)


def load_source(source: Source, compute_dtype: str) -> LoadedModel:
    """As :func:`load_model`, for a checkpoint that is open.

    Raises:
        UnsupportedError: A mixture of experts: transformers 5 holds them fused, as no checkpoint does.
    """
    config, tensors = source.config, source.tensors()
    if config.experts is not None:
        raise UnsupportedError(
            f"{source.checkpoint.directory}: a mixture of {config.experts} experts in each layer",
            hint="Mixtures of experts can be converted, not quantized or evaluated.",
        )
    specs = {name: spec for name, spec in tensors.specs.items() if not is_derived(name)}
    skeleton = Skeleton.build(with_both_rope_forms(config), choose_dtype(compute_dtype, config.dtype))
    faults = _differences(skeleton, specs) if expected_tensors(config) is None else []
    faults += _dtype_faults(skeleton, specs)
    if faults:
        raise ConfigError(
            f"{source.description or source.checkpoint.directory} and the tensors disagree:\n" + "\n".join(faults),
            hint="The checkpoint is incomplete, or its description belongs to another model.",
        )
    return LoadedModel(source, skeleton, tensors, specs)


def load_dense_model(path: Path, compute_dtype: str) -> LoadedModel:
    """As :func:`load_model`, for a checkpoint that is to be quantized.

    Raises:
        UnsupportedError: It is quantized already, by whatever method.
    """
    source = open_dense(path)
    _tell(source)
    model = load_source(source, compute_dtype)
    _warn_if_ties_differ(model)
    return model


def open_dense(path: Path) -> Source:
    """Open a checkpoint that is to be quantized.

    Raises:
        UnsupportedError: It is quantized already, by whatever method.
        InputError: As ``open_source``.
    """
    source = open_source(path)
    if source.quantization is not None:
        raise UnsupportedError(
            f"{source.checkpoint.directory}: already quantized ({_method(source.quantization)})",
            hint="Quantize the dense checkpoint it was made from.",
        )
    return source


def _tell(source: Source) -> None:
    """What took its usual value because no file says otherwise."""
    for note in source.notes:
        logger.warning(note)


def choose_dtype(name: str, stored: torch.dtype | None) -> torch.dtype:
    """The dtype that forwards run in.

    ``"auto"`` is the checkpoint's own where that is a 16-bit float with float32's range, else float32: float16
    overflows in the residual streams of many models.
    """
    if name == "auto":
        return torch.bfloat16 if stored == torch.bfloat16 else torch.float32
    return named_dtype(name)


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


def _method(quantization: Mapping[str, Any]) -> str:
    try:
        return quantizer_of_checkpoint(quantization).mode
    except UnsupportedError:
        return str(quantization.get("quant_method", "by a method it does not name"))


def _warn_if_ties_differ(model: LoadedModel) -> None:
    """The config is trusted; where it ties two tensors that differ, both are kept and the user is told."""
    for head, embedding in model.skeleton.tie.items():
        if head in model.specs and embedding in model.specs:
            digests = [sha256_bytes(tensor_bytes(model.tensors[name].read())) for name in (head, embedding)]
            if digests[0] != digests[1]:
                logger.warning(
                    "config.json ties %s (sha256 %.12s) to %s (sha256 %.12s), but they differ; both are kept",
                    *(head, digests[0], embedding, digests[1]),
                )


def _dtype_faults(skeleton: Skeleton, specs: Mapping[str, TensorSpec]) -> list[str]:
    names = (name for name, _ in skeleton.model.named_parameters(remove_duplicate=False) if name in specs)
    return [
        f"{specs[name]}: not a dtype that a dense weight is kept in; float32, bfloat16 and float16 are"
        for name in names
        if specs[name].dtype not in (torch.float64, *FLOATS.values())
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
