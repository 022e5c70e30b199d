"""What a checkpoint is, from its configuration and the headers of its weight files; no tensor is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig, read_config
from llamaconv.layouts.hugging_face import FAMILIES, HEAD, disagreements, expected_tensors, is_derived
from llamaconv.layouts.quantized import as_if_dense, quantized_layers
from llamaconv.sources.base import CheckpointReader
from llamaconv.sources.open import open_checkpoint
from llamaconv.sources.safetensors import SafetensorsReader
from llamaconv.tasks.quantization_facts import Quantization, describe_quantization
from llamaconv.tensors import TensorSpec

__all__ = ["Inspection", "Shard", "inspect"]

_INDEX = "model.safetensors.index.json"
_DIMENSIONS = (
    "layers",
    "hidden_size",
    "intermediate_size",
    "heads",
    "kv_heads",
    "head_dim",
    "vocab_size",
    "max_positions",
    "rope_theta",
    "rope_scaling",
)


@dataclass(frozen=True)
class Shard:
    """A weight file: its name, how many tensors it holds, its size in bytes."""

    file: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        path: What was inspected.
        family: Its ``model_type`` where the tensors of that type are in a table of ours, else None.
        config: config.json, with the model's dimensions; None for a lone file without one.
        parameters: Of the model; of the original weights where they are quantized. A tied head counts once.
            None where the way of quantizing is not known.
        bytes: Of all tensors, as stored.
        dtypes: Bytes stored in each dtype, the largest first.
        quantization: None for a dense checkpoint.
        head_stored: Whether there is an ``lm_head.weight``, dense or quantized.
        shards: The weight files.
        tensors: Every tensor, in the files' order.
        compared: Whether every name and shape was held against config.json. They are not for an unknown family
            or way of quantizing, for one shard of several, and for a file without config.json.
        faults: What config.json and the tensors say differently, one line each.
    """

    path: Path
    family: str | None
    config: ModelConfig | None
    parameters: int | None
    bytes: int
    dtypes: Mapping[str, int]
    quantization: Quantization | None
    head_stored: bool
    shards: tuple[Shard, ...]
    tensors: tuple[TensorSpec, ...]
    compared: bool
    faults: tuple[str, ...]

    @property
    def tied(self) -> bool | None:
        """Whether config.json ties the head to the embedding; None without one."""
        return None if self.config is None else self.config.tied

    def to_json(self, *, tensors: bool = True) -> dict[str, Any]:
        """JSON-safe form, with or without the list of tensors."""
        described = {
            "path": str(self.path),
            "family": self.family,
            **_dimensions(self.config),
            "tied": self.tied,
            "head_stored": self.head_stored,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtypes": dict(self.dtypes),
            "quantization": None if self.quantization is None else self.quantization.to_json(),
            "shards": [asdict(shard) for shard in self.shards],
            "compared": self.compared,
            "faults": list(self.faults),
        }
        if tensors:
            described["tensors"] = [
                {
                    "name": spec.name,
                    "shape": list(spec.shape),
                    "dtype": _name(spec.dtype),
                    "bytes": spec.nbytes,
                }
                for spec in self.tensors
            ]
        return described


def inspect(path: Path) -> Inspection:
    """Describe the checkpoint at ``path``: a directory, a safetensors file or an index.json.

    Disagreements between config.json and the tensors are reported, not raised.

    Raises:
        CheckpointError: No weights there, or damaged or incomplete ones.
        ConfigError: config.json is malformed, or missing where the checkpoint is not a lone file.
        UnsupportedError: Torch files, or a model that needs code of its own.
    """
    checkpoint = open_checkpoint(path)
    directory, specs = checkpoint.directory, checkpoint.reader.specs
    lone = path.suffix != ".json" and not path.is_dir()
    config = None if lone and not (directory / "config.json").exists() else read_config(directory)
    layers = tuple(quantized_layers(specs))
    dense = as_if_dense(specs, layers)
    quantization, faults = describe_quantization(directory, config, layers, dense)
    family = config.model_type if config is not None and config.model_type in FAMILIES else None
    known = quantization is None or quantization.known
    whole = not (lone and (directory / _INDEX).exists())
    if config is not None and known:
        faults += disagreements(config, _with_shapes(dense, config))
    countable = known and all(layer.weight is not None for layer in layers)
    return Inspection(
        path=path,
        family=family,
        config=config,
        parameters=_parameters(dense, config) if countable else None,
        bytes=sum(spec.nbytes for spec in specs.values()),
        dtypes=_bytes_by_dtype(specs.values()),
        quantization=quantization,
        head_stored=HEAD in dense,
        shards=_shards(checkpoint.reader),
        tensors=tuple(specs.values()),
        compared=family is not None and known and whole,
        faults=tuple(faults) if whole else (),
    )


def _with_shapes(dense: Mapping[str, TensorSpec], config: ModelConfig) -> Mapping[str, TensorSpec]:
    """``dense``, where a weight of known size but unknown shape takes the one that config.json gives it."""
    known = expected_tensors(replace(config, layers=min(config.layers, len(dense)), tied=False)) or {}

    def shaped(spec: TensorSpec) -> TensorSpec:
        shape = known.get(spec.name, spec.shape)
        # Two codes to the byte: an odd one out leaves half a byte empty.
        fits = len(shape) == 2 and len(spec.shape) == 1 and spec.numel - math.prod(shape) in (0, 1)
        return replace(spec, shape=shape) if fits else spec

    return {name: shaped(spec) for name, spec in dense.items()}


def _parameters(dense: Mapping[str, TensorSpec], config: ModelConfig | None) -> int:
    tied = config is not None and config.tied
    return sum(spec.numel for name, spec in dense.items() if not is_derived(name) and not (tied and name == HEAD))


def _bytes_by_dtype(specs: Iterable[TensorSpec]) -> dict[str, int]:
    sizes = Counter[str]()
    for spec in specs:
        sizes[_name(spec.dtype)] += spec.nbytes
    return dict(sizes.most_common())


def _shards(reader: CheckpointReader) -> tuple[Shard, ...]:
    assert isinstance(reader, SafetensorsReader)  # nothing else is opened yet
    return tuple(Shard(header.path.name, len(header.specs), bytes=header.stamp[0]) for header in reader.headers)


def _dimensions(config: ModelConfig | None) -> dict[str, Any]:
    if config is None:
        return dict.fromkeys(("model_type", "architectures", *_DIMENSIONS))
    return {
        "model_type": config.model_type,
        "architectures": list(config.architectures),
        **{name: getattr(config, name) for name in _DIMENSIONS},
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
