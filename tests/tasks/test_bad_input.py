"""What cannot be quantized is refused before anything exists at the destination."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamaconv.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    LlamaconvError,
    OutputError,
    OutputExistsError,
    UnsupportedError,
    UsageError,
)
from llamaconv.tasks.quantize import plan, quantize
from tests.conftest import Checkpoint
from tests.models import load_weights, patch_config, save_weights, write_model, write_tokenizer
from tests.tasks.runs import run, settings_for, write_tokens

MODEL = "model.safetensors"


@pytest.fixture
def source(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint to spoil, of one file."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens.npy")


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
    "pickle": Bad(to_pickle, UnsupportedError, ["{source}/pytorch_model.bin: torch files (pickles) are not read."]),
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


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES)
@pytest.mark.parametrize("action", [quantize, plan], ids=["quantize", "plan"])
def test_bad_input_is_refused_before_any_output_exists(
    source: Path, tokens: Path, bad: Bad, action: Callable[..., object]
) -> None:
    """With all that is wrong in one error, at once, and not a trace at the destination; a dry run says the same."""
    given = bad.spoil(source) or source
    settings: dict[str, Any] = {"mode": "gptq.int4", "calibration": tokens} | bad.settings
    if isinstance(settings["calibration"], str):
        settings["calibration"] = settings["calibration"].format(source=source)
    home = source.parent / "home"
    home.mkdir()
    begun = time.perf_counter()
    with pytest.raises(bad.kind) as caught:
        action(given, home / "out", settings_for(**settings))
    assert type(caught.value) is bad.kind
    assert time.perf_counter() - begun < 20
    text = str(caught.value)
    places = [text.find(line.format(source=source) if "{source}" in line else line) for line in bad.lines]
    assert -1 not in places, text
    assert places == sorted(places)
    assert caught.value.exit_code == {UsageError: 2, OutputError: 7}.get(bad.kind, 3)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_what_is_quantized_already_is_refused(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    """Whichever way, and whichever way is asked for."""
    once = run(checkpoint(), tmp_path / "once", mode).out
    for again in ("gptq.int8", "llm.int8"):
        with pytest.raises(UnsupportedError) as caught:
            run(once, tmp_path / "twice", again)
        assert str(caught.value) == f"{once}: already quantized ({mode})"
        assert caught.value.exit_code == 3
    assert not (tmp_path / "twice").exists()


def test_another_tool_s_quantization_is_refused(source: Path, tmp_path: Path) -> None:
    """By its name in config.json."""
    with pytest.raises(UnsupportedError) as caught:
        run(patch_config(source, quantization_config={"quant_method": "awq", "bits": 4}), tmp_path / "out")
    assert "'awq'" in str(caught.value)


def test_widths_that_are_no_multiples_of_32_are_all_listed(tmp_path: Path) -> None:
    """Inputs and outputs, of every layer of every block."""
    shape = {"hidden_size": 72, "head_dim": 20, "intermediate_size": 100, "num_hidden_layers": 2}
    source = write_tokenizer(write_model(tmp_path / "model", **shape))
    with pytest.raises(UnsupportedError) as caught:
        run(source, tmp_path / "out", group_size=-1)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 * 14
    assert lines[0] == "model.layers.0.self_attn.q_proj.weight [120, 72]: 120 outputs are not a multiple of 32"
    assert lines[-1] == "model.layers.1.mlp.down_proj.weight [72, 100]: 100 inputs are not a multiple of 32"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "relation"),
    [
        ("model", "are the same"),
        ("model/out", "the output is inside the source"),
        ("link/out", "the output is inside the source"),
        (".", "the source is inside the output"),
    ],
)
def test_source_and_output_must_lie_apart(source: Path, tokens: Path, out: str, relation: str) -> None:
    """By whatever name; it is a usage error, also where --overwrite would allow it."""
    (source.parent / "link").symlink_to(source)
    before = sorted(source.parent.rglob("*"))
    for action in (quantize, plan):
        with pytest.raises(UsageError) as caught:
            action(source, source.parent / out, settings_for("gptq.int4", tokens, overwrite=True))
        assert relation in str(caught.value)
        assert caught.value.exit_code == 2
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", ["full", "file"])
def test_an_output_that_is_there_is_not_touched(source: Path, tmp_path: Path, kind: str) -> None:
    """Neither a folder that holds something, nor a file."""
    out = tmp_path / "out"
    mine = out / "mine" if kind == "full" else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(OutputExistsError) as caught:
        run(source, out)
    assert caught.value.exit_code == 7
    assert mine.read_text() == "mine"
    assert not (tmp_path / "out.partial").exists()


def test_an_output_that_cannot_be_written_is_an_error(source: Path, tmp_path: Path) -> None:
    """What it should lie in is a file."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError) as caught:
        run(source, tmp_path / "file" / "out", calibration=write_tokens(tmp_path / "tokens.npy"))
    assert str(tmp_path / "file") in str(caught.value)
    assert caught.value.exit_code == 7
    assert (tmp_path / "file").read_text() == "mine"


def test_tokens_beyond_the_vocabulary_are_refused(source: Path, tmp_path: Path) -> None:
    """With the first one's place."""
    rows = np.arange(24).reshape(2, 12)
    rows[1, 5], rows[1, 7] = 288, -1
    np.save(tmp_path / "bad.npy", rows)
    with pytest.raises(CalibrationError) as caught:
        run(source, tmp_path / "out", calibration=tmp_path / "bad.npy")
    assert str(caught.value) == (
        f"{tmp_path / 'bad.npy'}: row 1, column 5: 288 is not a token of the model, whose vocabulary is 0 to 287 "
        "(1 more like it)."
    )
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
