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
from llamaconv.errors import InputError
from llamaconv.layouts.description import Given
from llamaconv.layouts.hugging_face import FAMILIES, HEAD, disagreements, expected_tensors, is_derived
from llamaconv.layouts.known import HUGGING_FACE, recognized
from llamaconv.layouts.quantized import as_if_dense, quantized_layers
from llamaconv.layouts.rules import Layout
from llamaconv.sources.base import CheckpointReader
from llamaconv.sources.open import Checkpoint, open_checkpoint
from llamaconv.tasks.quantization_facts import Quantization, describe_quantization
from llamaconv.tasks.source import Source
from llamaconv.tasks.source_native import open_native, rank_count
from llamaconv.tensors import TensorSpec
from llamaconv.weight_names import SAFETENSORS, TORCH

__all__ = ["Inspection", "Shard", "inspect"]

_INDEXES = (SAFETENSORS.index, TORCH.index)
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
        layout: How the tensors are named, fused and split; None where no layout has such names.
        ranks: Tensor-parallel files over which tensors are split; 1 if they are whole.
        family: Its ``model_type`` where the tensors of that type are in a table of ours, else None.
        config: config.json, or what a layout's own description says; None for a lone file without one, and where
            the description cannot be used.
        description: Name of that file, None where there is none.
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
    layout: str | None
    ranks: int
    family: str | None
    config: ModelConfig | None
    description: str | None
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
        """Whether the head is tied to the embedding, as config.json says; None where only the tensors could tell."""
        if self.config is None or (self.description != HUGGING_FACE.config_file and self.head_stored):
            return None
        return self.config.tied

    def to_json(self, *, tensors: bool = True) -> dict[str, Any]:
        """JSON-safe form, with or without the list of tensors."""
        described = {
            "path": str(self.path),
            "layout": self.layout,
            "ranks": self.ranks,
            "family": self.family,
            **_dimensions(self.config),
            "description": self.description,
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
    """Describe the checkpoint at ``path``: a directory, a weight file or an index.json, in any layout.

    Disagreements between the description and the tensors are reported, not raised.

    Raises:
        CheckpointError: No weights there, or damaged or incomplete ones.
        ConfigError: config.json is malformed, or missing where the checkpoint is not a lone file.
        UnsupportedError: A pickle of something else than tensors, or a model that needs code of its own.
    """
    checkpoint = open_checkpoint(path)
    layout = recognized(checkpoint.reader.specs)
    if layout is not None and layout is not HUGGING_FACE:
        return _native(path, checkpoint, layout)
    return _hugging_face(path, checkpoint, layout)


def _native(path: Path, checkpoint: Checkpoint, layout: Layout) -> Inspection:
    """A checkpoint with a description of its own."""
    specs = checkpoint.reader.specs
    layers = tuple(quantized_layers(specs))
    faults: tuple[str, ...] = ()
    source: Source | None = None
    try:
        source = open_native(checkpoint, layout, Given(), compare=False)
    except InputError as error:
        faults = tuple(error.message.splitlines())
    hub, dense = source.tensors().specs if source else {}, as_if_dense(specs, layers)
    quantization, _ = describe_quantization(checkpoint.directory, None, layers, dense)
    config = source.config if source else None
    heads = {name for template in layout.templates if template.hub == (HEAD,) for name in template.local}
    return Inspection(
        path=path,
        layout=layout.name,
        ranks=rank_count(specs),
        family=config.model_type if config else None,
        config=config,
        description=layout.config_file,
        parameters=_parameters(hub, config) if source else None,
        bytes=sum(spec.nbytes for spec in specs.values()),
        dtypes=_bytes_by_dtype(specs.values()),
        quantization=quantization,
        head_stored=any(name.partition("/")[2] in heads or name in heads for name in dense),
        shards=_shards(checkpoint.reader),
        tensors=tuple(specs.values()),
        compared=source is not None,
        faults=faults,
    )


def _hugging_face(path: Path, checkpoint: Checkpoint, layout: Layout | None) -> Inspection:
    """A checkpoint with config.json, or a lone file of one."""
    directory, specs = checkpoint.directory, checkpoint.reader.specs
    lone = path.suffix != ".json" and not path.is_dir()
    config = None if lone and not (directory / "config.json").exists() else read_config(directory)
    layers = tuple(quantized_layers(specs))
    dense = as_if_dense(specs, layers)
    quantization, faults = describe_quantization(directory, config, layers, dense)
    family = config.model_type if config is not None and config.model_type in FAMILIES else None
    known = quantization is None or quantization.known
    whole = not (lone and any((directory / index).exists() for index in _INDEXES))
    if config is not None and known:
        faults += disagreements(config, _with_shapes(dense, config))
    countable = known and all(layer.weight is not None for layer in layers)
    return Inspection(
        path=path,
        layout=None if layout is None and config is None else HUGGING_FACE.name,
        ranks=1,
        family=family,
        config=config,
        description=None if config is None else HUGGING_FACE.config_file,
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
    holdings = reader.holdings.items()
    return tuple(Shard(path.name, len(names), bytes=path.stat().st_size) for path, names in holdings)


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
