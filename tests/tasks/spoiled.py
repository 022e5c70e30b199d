"""Sources and settings that cannot be quantized, and what must be said of them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llamaconv.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    LlamaconvError,
    UnsupportedError,
    UsageError,
)
from tests.models import load_weights, patch_config, save_weights, write_model

__all__ = ["CASES", "Bad"]

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Bad:
    """What is wrong, and what must be said.

    Attributes:
        spoil: Done to the source; may return another one.
        kind: The error.
        lines: Each found in a line of its own, in this order; ``{source}`` stands for the folder.
        settings: Of the run.
    """

    spoil: Callable[[Path], Path | None]
    kind: type[LlamaconvError]
    lines: list[str]
    settings: dict[str, Any] = field(default_factory=dict)


def nothing(source: Path) -> None:
    """The source is good; what is asked of it is not."""


def remove_all(source: Path) -> None:
    for path in source.iterdir():
        path.unlink()


def reshard(source: Path, **weight_map: str) -> None:
    """Several files with an index, some of whose entries are changed."""
    write_model(source, max_shard_size="300kB")
    (source / MODEL).unlink()
    index = source / f"{MODEL}.index.json"
    raw = json.loads(index.read_text())
    index.write_text(json.dumps(raw | {"weight_map": raw["weight_map"] | weight_map}))


def truncate(source: Path) -> None:
    data = (source / MODEL).read_bytes()
    (source / MODEL).write_bytes(data[:-100])


def to_pickle(source: Path) -> None:
    (source / MODEL).unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(load_weights))


def change_tensors(source: Path) -> None:
    save_weights(
        source,
        **{
            "model.layers.0.mlp.up_proj.weight": torch.zeros(96, 96),
            "model.layers.1.self_attn.q_proj.weight": None,
            "model.layers.2.mlp.down_proj.bias": torch.zeros(96),
            "model.norm.weight": None,
        },
    )


def without_tokenizer(source: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / name).unlink()


CASES = {
    "missing": Bad(lambda source: source / "nonesuch", CheckpointError, ["{source}/nonesuch does not exist."]),
    "empty": Bad(remove_all, CheckpointError, ["{source} is empty."]),
    "no config": Bad(
        lambda source: (source / "config.json").unlink(), ConfigError, ["{source}/config.json does not exist."]
    ),
    "config is no JSON": Bad(
        lambda source: (source / "config.json").write_text("{") and None,
        ConfigError,
        ["{source}/config.json: not JSON"],
    ),
    "shard missing": Bad(
        lambda source: reshard(source, **{"model.norm.weight": "model-00009-of-00009.safetensors"}),
        CheckpointError,
        ["model-00009-of-00009.safetensors"],
    ),
    "shard outside": Bad(
        lambda source: reshard(source, **{"model.norm.weight": "../tokens.safetensors"}),
        CheckpointError,
        ["../tokens.safetensors"],
    ),
    "truncated": Bad(truncate, CheckpointError, ["{source}/model.safetensors"]),
    "header is no JSON": Bad(
        lambda source: (source / MODEL).write_bytes(b"\x08" + b"\0" * 7 + b"not JSON") and None,
        CheckpointError,
        ["{source}/model.safetensors"],
    ),
    "header is huge": Bad(
        lambda source: (source / MODEL).write_bytes(b"\xff" * 7 + b"\x7f" + b"{}") and None,
        CheckpointError,
        ["{source}/model.safetensors"],
    ),
    "pickle": Bad(
        to_pickle, UnsupportedError, ["{source}/pytorch_model.bin: the pickle in it wants tests.models.load_weights"]
    ),
    "tensors disagree": Bad(
        change_tensors,
        ConfigError,
        [
            "{source}/config.json and the tensors disagree:",
            "model.layers.0.mlp.up_proj.weight: [96, 96] in the checkpoint, [160, 96] by config.json",
            "model.layers.1.self_attn.q_proj.weight: missing from the checkpoint, [192, 96] by config.json",
            "model.norm.weight: missing from the checkpoint, [96] by config.json",
            "model.layers.2.mlp.down_proj.bias",
        ],
    ),
    "too many layers": Bad(
        lambda source: patch_config(source, num_hidden_layers=10**12),
        ConfigError,
        ["disagree:", "1000000000000 layers by config.json, but the checkpoint has 30 tensors"],
    ),
    "too few layers": Bad(
        lambda source: patch_config(source, num_hidden_layers=2), ConfigError, ["disagree:", "model.layers.2."]
    ),
    "absurd sizes": Bad(
        lambda source: patch_config(source, vocab_size=10**12, intermediate_size=10**12),
        ConfigError,
        [
            "disagree:",
            "model.embed_tokens.weight: [288, 96] in the checkpoint, [1000000000000, 96] by config.json",
            "model.layers.0.mlp.gate_proj.weight: [160, 96] in the checkpoint, [1000000000000, 96] by config.json",
        ],
    ),
    "unknown architecture": Bad(
        lambda source: patch_config(source, model_type="nonesuch"), UnsupportedError, ["no model_type 'nonesuch'"]
    ),
    "remote code": Bad(
        lambda source: patch_config(source, auto_map={"AutoModelForCausalLM": "model.Model"}),
        UnsupportedError,
        ["{source}/config.json: auto_map is", "never run"],
    ),
    "refused by transformers": Bad(
        lambda source: patch_config(source, hidden_act="nonesuch"), ConfigError, ["transformers refuses it"]
    ),
    "no tokenizer": Bad(without_tokenizer, CalibrationError, ["{source}: no tokenizer is here"], {"calibration": None}),
    "group does not divide": Bad(
        nothing,
        UnsupportedError,
        [
            f"model.layers.{block}.{name}.weight {shape}: groups of 64 do not divide {shape[1]} inputs"
            for block in range(3)
            for name, shape in (
                ("self_attn.q_proj", [192, 96]),
                ("self_attn.k_proj", [64, 96]),
                ("self_attn.v_proj", [64, 96]),
                ("mlp.gate_proj", [160, 96]),
                ("mlp.up_proj", [160, 96]),
                ("mlp.down_proj", [96, 160]),
            )
        ],
        {"group_size": 64},
    ),
    "group of nothing": Bad(nothing, UsageError, ["a group size of 0"], {"group_size": 0}),
    "unknown mode": Bad(nothing, UsageError, ["unknown mode 'gptq.int5'"], {"mode": "gptq.int5"}),
    "unknown dtype": Bad(nothing, UsageError, ["unknown dtype 'int8'"], {"dtype": "int8"}),
    "unknown compute dtype": Bad(nothing, UsageError, ["unknown dtype 'fp8'"], {"compute_dtype": "fp8"}),
    "unknown device": Bad(nothing, UnsupportedError, ["no such device: 'abacus'"], {"device": "abacus"}),
    "skip matches nothing": Bad(
        nothing, UsageError, ["--skip matches no layer: *.nonesuch"], {"skip": ("*.nonesuch", "*.q_proj")}
    ),
    "tied head": Bad(
        lambda source: save_weights(patch_config(source, tie_word_embeddings=True), **{"lm_head.weight": None}),
        UnsupportedError,
        ["the head's weight is tied to the embedding"],
        {"lm_head": True},
    ),
    "sequences too long": Bad(
        nothing,
        CalibrationError,
        ["the sequence length 513 is above the model's maximum of 512."],
        {"calibration": None, "seq_len": 513},
    ),
    "calibration missing": Bad(
        nothing, CalibrationError, ["{source}/nonesuch.txt: does not exist."], {"calibration": "{source}/nonesuch.txt"}
    ),
}
