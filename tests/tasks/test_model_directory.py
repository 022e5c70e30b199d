from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from llamaconv import __version__
from tests.conftest import Checkpoint
from tests.models import patch_config
from tests.tasks.runs import LAYERS, digests, run

GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": True,
    "checkpoint_format": "gptq",
    "true_sequential": True,
    "static_groups": False,
    "damp_percent": 0.01,
    "lm_head": False,
    "modules_in_block_to_quantize": [[layer] for layer in LAYERS],
    "meta": {"quantizer": [f"llamaconv:{__version__}"]},
}
INT8 = {
    "quant_method": "bitsandbytes",
    "load_in_8bit": True,
    "load_in_4bit": False,
    "_load_in_8bit": True,
    "_load_in_4bit": False,
    "llm_int8_threshold": 6.0,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_skip_modules": ["lm_head"],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def raw(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_text()))


def rope_read(directory: Path) -> dict[str, Any]:
    """Base and scaling as the installed transformers understands the directory."""
    config = AutoConfig.from_pretrained(directory)
    if not hasattr(config, "standardize_rope_params"):  # 4.57
        found = {"rope_type": "default"} | (config.rope_scaling or {}) | {"rope_theta": config.rope_theta}
    else:
        found = config.rope_parameters
    return {key: value for key, value in found.items() if key != "type"}


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_config_is_the_source_s_with_the_quantization_added(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    """Every key as it was and where it was, also those that nobody knows; the new one comes last."""
    source = patch_config(
        shutil.copytree(checkpoint(), tmp_path / "model"), zebra={"b": [1.0, None], "a": "ü"}, apple=0
    )
    out = run(source, tmp_path / "out", mode).out
    expected = raw(source) | {"quantization_config": GPTQ if mode == "gptq.int4" else INT8}
    assert list(raw(out).items()) == list(expected.items())
    assert (out / "quantize_config.json").exists() == (mode == "gptq.int4")
    if mode == "gptq.int4":
        assert json.loads((out / "quantize_config.json").read_text()) == GPTQ


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"act_order": True, "symmetric": False}, {"desc_act": True, "sym": False}),
        ({"group_size": -1, "damping": 0.05, "mode": "gptq.int2"}, {"group_size": -1, "damp_percent": 0.05, "bits": 2}),
        (
            {"lm_head": True},
            {"lm_head": True, "modules_in_block_to_quantize": [[layer] for layer in (*LAYERS, "lm_head")]},
        ),
        (
            {"skip": ("*.down_proj",)},
            {
                "modules_in_block_to_quantize": [[layer] for layer in LAYERS[:-1]],
                "dynamic": {rf"-:^model\.layers\.{block}\.mlp\.down_proj$": {} for block in range(3)},
            },
        ),
        (
            {"skip": ("model.layers.1.mlp.*",)},
            {
                "dynamic": {
                    rf"-:^model\.layers\.1\.mlp\.{name}_proj$": {} for name in ("gate", "up", "down", "gate_up")
                },
            },
        ),
    ],
    ids="-".join,
)
def test_quantization_config_says_what_was_done(
    checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Layers left dense are named in the ways that the runtimes read."""
    out = run(checkpoint(), tmp_path / "out", **settings).out
    assert raw(out)["quantization_config"] == GPTQ | changes
    assert json.loads((out / "quantize_config.json").read_text()) == GPTQ | changes


@pytest.mark.parametrize(
    ("settings", "skipped"),
    [
        ({"lm_head": True}, []),
        ({"skip": ("*.1.mlp.down_proj",)}, ["lm_head", "model.layers.1.mlp.down_proj"]),
        ({"lm_head": True, "skip": ("*.0.mlp.up_proj",)}, ["model.layers.0.mlp.up_proj"]),
    ],
)
def test_llm_int8_lists_what_stays_dense(
    checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any], skipped: list[str]
) -> None:
    """The head among it, if it was not asked for."""
    out = run(checkpoint(), tmp_path / "out", "llm.int8", **settings).out
    assert raw(out)["quantization_config"] == INT8 | {"llm_int8_skip_modules": skipped}


@pytest.mark.parametrize("rope", ["theta", "parameters", "both"])
@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, LLAMA3], ids=["default", "llama3"])
def test_the_rotary_base_is_written_in_both_forms(
    checkpoint: Checkpoint, tmp_path: Path, rope: str, scaling: dict[str, Any]
) -> None:
    """For transformers 5, which reads rope_parameters, and for 4.57, which reads rope_theta and rope_scaling."""
    source = checkpoint(rope=rope, rope_parameters=scaling | {"rope_theta": 25000.0}, rope_theta=25000.0)
    out = run(source, tmp_path / "out", "llm.int8").out
    written = raw(out)
    assert written["rope_theta"] == 25000.0
    assert written["rope_parameters"] == scaling | {"rope_theta": 25000.0}
    assert written.get("rope_scaling") == (None if scaling["rope_type"] == "default" else scaling)
    assert rope_read(out) == scaling | {"rope_theta": 25000.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": None, "rope_scaling": None},
        {"rope_parameters": None},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 25000}, "rope_theta": ...},
        {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
    ids=str,
)
def test_whatever_the_source_leaves_open_is_filled_in(
    checkpoint: Checkpoint, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A null is as good as nothing, to either version of transformers."""
    source = patch_config(shutil.copytree(checkpoint(), tmp_path / "model"), **changes)
    written = raw(run(source, tmp_path / "out", "llm.int8").out)
    assert written["rope_theta"] == 25000.0
    assert written["rope_parameters"].get("rope_theta", 25000.0) == 25000.0
    scaling = changes.get("rope_scaling") or {"type": "default"}
    scaling = {"rope_type": scaling["type"]} | {key: value for key, value in scaling.items() if key != "type"}
    assert rope_read(tmp_path / "out") == scaling | {"rope_theta": 25000.0}


def test_what_belongs_to_the_model_comes_along(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Tokenizer, chat templates, generation config and licence, byte for byte; nothing else, and links as files."""
    source = shutil.copytree(checkpoint(), tmp_path / "model")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (tmp_path / "licence").write_text("mine")
    (source / "LICENSE").symlink_to(tmp_path / "licence")
    unrelated = ("README.md", "pytorch_model.bin", "training_args.json", ".gitattributes")
    for name in unrelated:
        (source / name).write_text("no part of the model")
    out = run(source, tmp_path / "out").out
    before, after = digests(source), digests(out)
    copied = before.keys() - {"config.json", "model.safetensors", *unrelated}
    assert {"LICENSE", "additional_chat_templates/tools.jinja", "chat_template.jinja", "tokenizer.json"} < copied
    assert {name: after[name] for name in copied} == {name: before[name] for name in copied}
    assert after.keys() == copied | {"config.json", "llamaconv.json", "model.safetensors", "quantize_config.json"}
    assert not (out / "LICENSE").is_symlink()


def test_what_comes_along_can_be_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By transformers: the tokenizer with its chat template, and the generation config."""
    out = run(checkpoint(), tmp_path / "out").out
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("Hi")["input_ids"][0] == 256
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat == "<s>user: Hi\n"
    assert GenerationConfig.from_pretrained(out).eos_token_id == 257
