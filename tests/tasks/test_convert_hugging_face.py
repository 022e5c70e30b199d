"""Within Hugging Face's layout: other shards, another format, another dtype; whatever the family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamaconv.errors import NumericalError, UsageError
from tests.conftest import Checkpoint
from tests.models import (
    load_weights,
    patch_config,
    random_tokens,
    reference,
    reference_logits,
    save_weights,
    write_model,
)
from tests.sources.files import random_tensor
from tests.sources.torch_files import write_legacy, write_zip
from tests.tasks.conversions import same_bits, stored, to

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def with_tensors(source: Path, out: Path, **changes: Tensor | None) -> Path:
    """A copy with some tensors changed."""
    return save_weights(shutil.copytree(source, out), **changes)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_one_file_is_what_the_library_writes(checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype) -> None:
    """Byte for byte, from several shards, for every dtype."""
    source = write_model(tmp_path / "source", dtype=dtype, max_shard_size="200kB")
    out = to("hf", source, tmp_path / "out").out
    assert (out / "model.safetensors").exists()
    save_file(load_weights(source), tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_shards_are_filled_to_their_size_and_listed(checkpoint: Checkpoint, tmp_path: Path, format: str) -> None:
    """Every file holds no more than asked for, the index names each tensor's, and transformers loads the whole."""
    source = checkpoint()
    result = to("hf", source, tmp_path / "out", format=format, max_shard_size=200_000)
    stem, suffix = {"safetensors": ("model", ".safetensors"), "torch": ("pytorch_model", ".bin")}[format]
    count = len(result.files)
    assert count > 3
    assert result.files == tuple(f"{stem}-{n:05}-of-{count:05}{suffix}" for n in range(1, count + 1))
    raw = json.loads((result.out / f"{stem}{suffix}.index.json").read_text())
    tensors = load_weights(source)
    assert raw["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    found: dict[str, Tensor] = {}
    for name in result.files:
        held = load_file(result.out / name) if format == "safetensors" else torch.load(result.out / name)
        assert sum(tensor.nbytes for tensor in held.values()) <= 200_000
        assert {raw["weight_map"][tensor] for tensor in held} == {name}
        found |= held
    assert same_bits(found, tensors)
    (tokens,) = random_tokens(1)
    assert torch.equal(reference_logits(reference(result.out), tokens), reference_logits(reference(source), tokens))


def test_torch_files_are_loaded_by_transformers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With nothing but tensors in them, no tensor holding more than itself, and back they are the source."""
    from transformers import AutoModelForCausalLM

    source = checkpoint("qwen2", dtype=torch.bfloat16)
    out = to("hf", source, tmp_path / "out", format="torch").out
    assert sorted(path.name for path in out.glob("*model*")) == ["pytorch_model.bin"]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in stored(out).values())
    model = AutoModelForCausalLM.from_pretrained(out, weights_only=True, dtype="auto")
    assert same_bits({name: tensor.data for name, tensor in model.named_parameters()}, load_weights(source))
    back = to("hf", out, tmp_path / "back").out
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_torch_files_of_every_kind_are_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Aliases, views, transposes and the format from before torch 1.6 come out as the tensors that they are."""
    tensors = load_weights(checkpoint(tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for layer in range(3):
        name = f"model.layers.{layer}.self_attn.k_proj.weight"
        both = torch.cat([tensors[name], tensors[name.replace("k_proj", "v_proj")]])
        tensors |= {name: both[:64], name.replace("k_proj", "v_proj"): both[64:]}
        down = f"model.layers.{layer}.mlp.down_proj.weight"
        tensors[down] = tensors[down].T.contiguous().T
    for number, write in enumerate((write_zip, write_legacy)):
        source = shutil.copytree(checkpoint(tie_word_embeddings=True), tmp_path / f"source {number}")
        (source / "model.safetensors").unlink()
        write(source / "pytorch_model.bin", tensors)
        out = to("hf", source, tmp_path / str(number)).out
        assert same_bits(load_weights(out), tensors)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("target", NAMES, ids=str)
def test_tensors_are_cast_and_config_json_says_so(
    checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype, target: torch.dtype
) -> None:
    """As torch casts; integers stay, and so does every other key."""
    position = torch.arange(7)
    source = with_tensors(checkpoint("gemma2", dtype=dtype), tmp_path / "source", **{"model.positions": position})
    result = to("hf", source, tmp_path / "out", dtype=NAMES[target], allow_overflow=True)
    expected = {name: tensor.to(target) for name, tensor in load_weights(source).items()} | {
        "model.positions": position
    }
    assert same_bits(load_weights(result.out), expected)
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, result.out))
    assert (after["dtype"], after["torch_dtype"]) == (NAMES[target], NAMES[target])
    assert all(after[key] == value for key, value in before.items() if key != "dtype")


def test_what_a_dtype_cannot_hold_is_counted_and_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Tensor by tensor, overflow and underflow; exit code 8, and nothing is published."""
    weight = load_weights(checkpoint())["model.layers.0.mlp.up_proj.weight"].clone()
    weight[:2, :5], weight[7], weight[8, 8] = 70000.0, 1e-9, torch.inf
    norm = torch.full((96,), -1e6)
    changes = {"model.layers.0.mlp.up_proj.weight": weight, "model.norm.weight": norm}
    source = with_tensors(checkpoint(), tmp_path / "source", **changes)
    with pytest.raises(NumericalError) as caught:
        to("hf", source, tmp_path / "out", dtype="float16")
    lines = [
        "model.layers.0.mlp.up_proj.weight: of 15,360 values 10 overflow and 96 flush to zero in float16",
        "model.norm.weight: of 96 values 96 overflow in float16",
    ]
    assert str(caught.value).splitlines() == lines
    assert caught.value.hint == "--allow-overflow accepts that; --dtype keep, or float32, loses nothing."
    assert caught.value.exit_code == 8
    assert json.loads(json.dumps(caught.value.facts))["losses"][1]["overflowed"] == 96
    assert not (tmp_path / "out").exists()
    allowed = to("hf", source, tmp_path / "out", dtype="float16", allow_overflow=True)
    assert allowed.losses == tuple(lines)
    assert json.loads((allowed.out / "llamaconv.json").read_text())["losses"] == lines
    assert same_bits(load_weights(allowed.out), {name: t.half() for name, t in load_weights(source).items()})
    assert to("hf", source, tmp_path / "wide", dtype="bfloat16").losses == ()


@pytest.mark.parametrize("layout", ["litgpt", "meta"])
def test_what_is_lost_on_the_way_to_another_layout_is_counted_too(
    checkpoint: Checkpoint, tmp_path: Path, layout: str
) -> None:
    """Under the layout's own names."""
    changes = {"model.layers.1.self_attn.k_proj.weight": torch.full((32, 96), 1e5)}
    source = checkpoint(head_dim=16)
    source = with_tensors(source, tmp_path / "source", **changes)
    with pytest.raises(NumericalError) as caught:
        to(layout, source, tmp_path / "out", dtype="float16")
    assert (
        str(caught.value)
        == {
            "litgpt": "transformer.h.1.attn.qkv.weight: of 15,360 values 3,072 overflow in float16",
            "meta": "layers.1.attention.wk.weight: of 3,072 values 3,072 overflow in float16",
        }[layout]
    )


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_families_without_a_table_are_copied(checkpoint: Checkpoint, tmp_path: Path, family: str) -> None:
    """Every tensor as it is, and config.json byte for byte."""
    source = checkpoint(family, dtype=torch.bfloat16)
    out = to("hf", source, tmp_path / "out", format="torch").out
    assert same_bits(stored(out), load_weights(source))
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_ways_to_quantize_that_nobody_here_reads_are_copied(
    checkpoint: Checkpoint, tmp_path: Path, format: str
) -> None:
    """With tensors of any dtype and shape, scalars and empty ones among them; but not to another dtype."""
    odd = {
        "a.weight": random_tensor((5, 3), torch.float8_e4m3fn),
        "a.scale": random_tensor((), torch.float64),
        "a.nothing": torch.empty(3, 0),
        "a.none": torch.empty(0, 5, dtype=torch.int16),
        "a.mask": random_tensor((9,), torch.bool),
        "a.phase": random_tensor((2, 2), torch.complex64),
    }
    source = with_tensors(checkpoint(), tmp_path / "source", **odd)
    patch_config(source, quantization_config={"quant_method": "nonesuch", "bits": 8})
    out = to("hf", source, tmp_path / "out", format=format, verify=True).out
    assert same_bits(load_weights(out) if format == "safetensors" else stored(out), load_weights(source))
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    back = to("hf", out, tmp_path / "back").out
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    with pytest.raises(UsageError) as caught:
        to("hf", source, tmp_path / "cast", dtype="float16")
    assert caught.value.hint == "--dequantize makes dense weights of it, in any dtype."


def test_tensors_that_follow_from_the_config_stay_where_they_are_and_go_nowhere_else(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Old checkpoints hold rotary frequencies: a copy keeps them, other layouts have no place for them."""
    changes = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(16) for layer in range(3)}
    source = with_tensors(checkpoint(), tmp_path / "source", **changes)
    assert same_bits(load_weights(to("hf", source, tmp_path / "hf").out), load_weights(source))
    result = to("litgpt", source, tmp_path / "litgpt", verify=True)
    assert not any("freq" in name for name in stored(result.out))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (
            {"tensor_parallel": 2, "embedding_split": "rows", "size": "7B"},
            "--tensor-parallel, --embedding-split, --size",
        ),
        ({"embedding_split": "columns"}, "--embedding-split"),
    ],
)
def test_settings_of_other_layouts_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any], options: str
) -> None:
    """All that have no effect, in one error."""
    with pytest.raises(UsageError) as caught:
        to("hf", checkpoint(), tmp_path / "out", **settings)
    assert str(caught.value) == f"Without effect with --to hf: {options}."
    with pytest.raises(UsageError) as caught:
        to("litgpt", checkpoint(), tmp_path / "out", format="torch")
    assert str(caught.value) == "Without effect with --to litgpt: --format."
    assert list(tmp_path.iterdir()) == []
