"""What a conversion is to write: steps, files, and the description beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llamaconv.casts import output_dtype
from llamaconv.config import ModelConfig, with_both_rope_forms
from llamaconv.digests import sha256_bytes
from llamaconv.errors import UnsupportedError, UsageError
from llamaconv.layouts import lit_llama_facts, meta_llama
from llamaconv.layouts.hugging_face import HEAD
from llamaconv.layouts.known import HUGGING_FACE, LAYOUTS
from llamaconv.layouts.operations import Identity
from llamaconv.layouts.rules import EMBEDDING, Layout, Rule
from llamaconv.layouts.view import Tensors
from llamaconv.plan.base import Step
from llamaconv.plan.conversion import conversion_steps
from llamaconv.sinks.in_place import tensor_bytes
from llamaconv.sinks.sharding import Shard, shard
from llamaconv.tasks.comparison import same_bits
from llamaconv.tasks.convert_quantized import from_lit_llama, to_lit_llama
from llamaconv.tasks.settings import ConvertSettings
from llamaconv.tasks.source import Source
from llamaconv.tensors import TensorSpec
from llamaconv.weight_names import LITGPT, SAFETENSORS, TORCH

__all__ = ["Target", "require_lit_llama", "target_of"]


_TARGETS = ("hf", "litgpt", "lit-llama", "meta")
_MAX_SHARD = 5_000_000_000


@dataclass(frozen=True)
class Target:
    """What comes of a source.

    Attributes:
        layout: Of the output.
        reader: What steps read.
        steps: What is done.
        shards: The weight files.
        proof: The tensors that must be read back from the output, under Hugging Face's names, as if dense.
        copied: Whether the output must hold them as they are stored.
        files: The descriptions, by name.
        notes: What the layout's code does slightly differently.
    """

    layout: Layout
    reader: Tensors
    steps: tuple[Step, ...]
    shards: tuple[Shard, ...]
    proof: Tensors
    copied: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def target_of(source: Source, settings: ConvertSettings) -> Target:
    """What the settings make of a source.

    Raises:
        UnsupportedError: The layout cannot hold the model; all facts are listed.
        UsageError: Settings that the layout has no use for.
    """
    quantized = source.quantization is not None and not settings.dequantize
    _require_sense(settings, quantized)
    layout = _layout(source.config, settings)
    if layout is HUGGING_FACE:
        return _to_hugging_face(source, settings, quantized)
    config, head_notes = (source.config, []) if quantized else _with_its_own_head(source)
    rules = _rules(layout, config)  # what cannot be held cannot be described either
    size = require_lit_llama(source.config, settings.size) if layout.name == "lit-llama" else ""
    files = {layout.config_file: layout.description(source.config)} if layout.config_file else {}
    if layout.name == "litgpt" and (source.layout is HUGGING_FACE or source.beside):
        files |= _config_json(source, settings)  # as litgpt itself keeps it
    if quantized:
        reader, filename = source.stored, f"{size}/llama-gptq.{{}}bit.pth"
        steps, bits = to_lit_llama(source, layout)
        shards: tuple[Shard, ...] = (Shard(filename.format(bits), _written(steps)),)
        notes = (*layout.warnings(source.config), *_without_tokenizer(source, layout))
        return Target(layout, reader, steps, shards, source.tensors(), False, files, notes)
    reader = source.tensors(_dense_dtype(source.config, settings))
    steps = conversion_steps(reader, rules, output_dtype(settings.dtype))
    notes = (*layout.warnings(source.config), *head_notes, *_without_tokenizer(source, layout))
    return Target(layout, reader, steps, _shards(layout, size, _written(steps)), reader, False, files, notes)


def _to_hugging_face(source: Source, settings: ConvertSettings, quantized: bool) -> Target:
    files = _config_json(source, settings)
    if quantized and source.layout is not HUGGING_FACE:
        steps, quantization = from_lit_llama(source)
        raw = json.loads(files["config.json"]) | {"quantization_config": quantization}
        files = {"config.json": _json(raw), "quantize_config.json": _json(quantization)}
        shards = _hugging_face_shards(_written(steps), settings)
        return Target(HUGGING_FACE, source.stored, steps, shards, source.tensors(), False, files)
    copied = source.layout is HUGGING_FACE and not settings.dequantize
    reader = source.stored if copied else source.tensors(_dense_dtype(source.config, settings))
    rules = [Rule((name,), (name,), Identity()) for name in reader.specs]
    steps = conversion_steps(reader, rules, output_dtype(settings.dtype))
    return Target(HUGGING_FACE, reader, steps, _hugging_face_shards(_written(steps), settings), reader, copied, files)


def _written(steps: Sequence[Step]) -> tuple[TensorSpec, ...]:
    return tuple(spec for step in steps for spec in step.writes)


def _hugging_face_shards(specs: Sequence[TensorSpec], settings: ConvertSettings) -> tuple[Shard, ...]:
    form = SAFETENSORS if settings.format == "safetensors" else TORCH
    return shard(specs, settings.max_shard_size or _MAX_SHARD, form.stem, form.suffix)


def _shards(layout: Layout, size: str, specs: tuple[TensorSpec, ...]) -> tuple[Shard, ...]:
    if layout.name == "litgpt":
        return (Shard(LITGPT, specs),)
    if layout.name == "lit-llama":
        return (Shard(f"{size}/lit-llama.pth", specs),)
    prefixes = [f"{rank:02d}/" for rank in range(layout.ranks)] if layout.ranks > 1 else [""]
    return tuple(
        Shard(f"consolidated.{rank:02d}.pth", tuple(spec for spec in specs if spec.name.startswith(prefix)), prefix)
        for rank, prefix in enumerate(prefixes)
    )


def _with_its_own_head(source: Source) -> tuple[ModelConfig, list[str]]:
    """The config by which rules are made: where it ties a head that is stored and differs, both are kept."""
    config, reader = source.config, source.tensors()
    if not config.tied or HEAD not in reader.specs or same_bits(reader[HEAD], reader[EMBEDDING]):
        return config, []
    digests = [sha256_bytes(tensor_bytes(reader[name].read())) for name in (HEAD, EMBEDDING)]
    return replace(config, tied=False), [
        f"config.json ties {HEAD} (sha256 {digests[0][:12]}) to {EMBEDDING} (sha256 {digests[1][:12]}), "
        "but they differ; both are kept"
    ]


def _without_tokenizer(source: Source, layout: Layout) -> list[str]:
    """What the layout's tool will miss."""
    if not layout.tokenizers or any((source.home / name).is_file() for name in layout.tokenizers):
        return []
    return [f"the source has no {' or '.join(layout.tokenizers)}, which {layout.name}'s tools take their tokens from"]


def _rules(layout: Layout, config: ModelConfig) -> tuple[Rule, ...]:
    """The layout's rules; a refusal names the layouts that can hold the model."""
    try:
        return layout.rules(config)
    except UnsupportedError as error:
        able = [other.name for other in LAYOUTS.values() if other.name in _TARGETS and _holds(other, config)]
        hint = f"{' and '.join(able)} can." if able else error.hint
        raise UnsupportedError(error.message, hint=hint, **error.facts) from None


def _holds(layout: Layout, config: ModelConfig) -> bool:
    try:
        layout.rules(config)
    except UnsupportedError:
        return False
    return True


def _require_sense(settings: ConvertSettings, quantized: bool) -> None:
    """Refuse settings that the layout, or a checkpoint that stays quantized, has no use for."""
    idle = {
        "--tensor-parallel": settings.tensor_parallel != 1 and settings.to != "meta",
        "--embedding-split": settings.embedding_split is not None and settings.to != "meta",
        "--size": settings.size is not None and settings.to != "lit-llama",
        "--format": settings.format == "torch" and settings.to != "hf",
        "--max-shard-size": settings.max_shard_size is not None and settings.to != "hf",
    }
    named = [option for option, without_effect in idle.items() if without_effect]
    if named:
        raise UsageError(f"Without effect with --to {settings.to}: {', '.join(named)}.")
    if settings.allow_overflow and settings.dtype == "keep":
        raise UsageError("--allow-overflow accepts what a --dtype loses; none is given.")
    if quantized and settings.dtype != "keep":
        raise UsageError(
            f"--dtype {settings.dtype}: the checkpoint is quantized, and what it stores has the dtypes of its format.",
            hint="--dequantize makes dense weights of it, in any dtype.",
        )


def _layout(config: ModelConfig, settings: ConvertSettings) -> Layout:
    if settings.to != "meta":
        return LAYOUTS[settings.to]
    axis = settings.embedding_split or meta_llama.embedding_axis(config)
    return meta_llama.layout(settings.tensor_parallel, axis)


def require_lit_llama(config: ModelConfig, size: str | None) -> str:
    """The name of the folder where lit-llama's scripts look for a model.

    Args:
        config: The model.
        size: A name that the user gives, for code of his own that builds the model.

    Raises:
        UnsupportedError: lit-llama cannot hold the model, or, without a name, its scripts cannot load it.
        UsageError: The name is more than a folder's.
    """
    if size is not None and (not re.fullmatch(r"[\w-]+", size)):
        raise UsageError(f"--size {size}: no name of a folder.", hint="Give a plain name, such as 7B.")
    _rules(LAYOUTS["lit-llama"], config)  # what the layout cannot hold at all comes first
    facts = lit_llama_facts.stock_obstacles(config)
    size = size or (None if facts else lit_llama_facts.size_of(config))
    if size is None:
        raise UnsupportedError(
            "lit-llama's scripts cannot load this model:\n" + "\n".join(facts),
            hint="litgpt holds every family; --size NAME writes the file all the same, for code that builds its own "
            "LLaMAConfig.",
            layout="lit-llama",
            obstacles=facts,
        )
    return size


def _dense_dtype(config: ModelConfig, settings: ConvertSettings) -> torch.dtype:
    """Of weights that were quantized: what config.json says of the model; all there is where a cast follows."""
    return (config.dtype or torch.float16) if settings.dtype == "keep" else torch.float32


def _config_json(source: Source, settings: ConvertSettings) -> dict[str, bytes]:
    """config.json, and quantize_config.json if it still holds: the source's own bytes where nothing changes."""
    config, dtype = source.config, output_dtype(settings.dtype)
    dense = settings.dequantize and source.quantization is not None
    if dtype is None and source.layout is HUGGING_FACE and not dense:
        kept = [source.beside] if source.beside else []
        return {"config.json": config.source} | {path.name: path.read_bytes() for path in kept}
    raw: dict[str, Any] = with_both_rope_forms(config)
    if dense:
        raw.pop("quantization_config", None)
    if dtype is not None:
        raw |= dict.fromkeys(("dtype", "torch_dtype"), str(dtype).removeprefix("torch."))
    return {"config.json": _json(raw)}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
