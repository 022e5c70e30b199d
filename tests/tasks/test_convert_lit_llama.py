"""lit-llama's layout: what its code computes with, where its scripts look, the vocabulary padded and cut again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaconv.config import read_config
from llamaconv.errors import ConfigError, UnsupportedError, UsageError
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.tasks.convert import ConvertSettings, convert, plan
from llamaconv.tensors import TensorSpec
from tests.configs import config, write_config
from tests.conftest import Checkpoint
from tests.layouts.native import lit_llama_logits
from tests.models import load_weights, random_tokens, reference, reference_logits
from tests.tasks.conversions import LLAMA_1, NO_TOKENIZER, same_bits, stored, to

SEVEN_B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "vocab_size": 32000,
    "rope_theta": 10000.0,
}


def write_header(directory: Path, **changes: Any) -> Path:
    """A checkpoint of zeros that takes next to nothing on disk."""
    directory.mkdir()
    write_config(directory, **changes)
    header, end = {}, 0
    for name, shape in (expected_tensors(config(**changes)) or {}).items():
        size = TensorSpec(name, shape, torch.bfloat16).nbytes
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return directory


@pytest.fixture
def source(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A Llama 1 with the tokenizer that its scripts know."""
    directory = shutil.copytree(checkpoint(**LLAMA_1), tmp_path / "source")
    (directory / "tokenizer.model").write_bytes(b"pieces")
    return directory


def test_its_code_computes_the_same_with_it(source: Path, tmp_path: Path) -> None:
    """At positions past 1,000 too; the logits of padding are 0."""
    out = to("lit-llama", source, tmp_path / "out").out
    (tokens,) = random_tokens(1, 1200, vocab=290)
    logits = lit_llama_logits(stored(out), 6, tokens)
    assert logits.shape == (1200, 320)
    assert not logits[:, 290:].any()
    expected = reference_logits(reference(source), tokens)[1000:]
    assert (logits[1000:, :290] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_its_scripts_find_weights_and_tokenizer(source: Path, tmp_path: Path) -> None:
    """The weights in the folder of the model's size, the tokenizer above it; both are found again from any of them."""
    out = to("lit-llama", source, tmp_path / "out", size="7C").out
    assert (out / "7C" / "lit-llama.pth").is_file()
    assert (out / "tokenizer.model").read_bytes() == b"pieces"
    for number, place in enumerate((out, out / "7C", out / "7C" / "lit-llama.pth")):
        back = to("hf", place, tmp_path / str(number), heads=6, vocab_size=290).out
        assert same_bits(load_weights(back), load_weights(source))
        assert (back / "tokenizer.model").read_bytes() == b"pieces"


def test_a_tokenizer_beside_the_weights_is_theirs(source: Path, tmp_path: Path) -> None:
    """Then nothing of the folder above is taken."""
    out = to("lit-llama", source, tmp_path / "out").out
    (out / "tiny" / "tokenizer.model").write_bytes(b"its own")
    back = to("hf", out / "tiny", tmp_path / "back", heads=6, vocab_size=290).out
    assert (back / "tokenizer.model").read_bytes() == b"its own"
    assert not (back / "tokenizer.json").exists()


def test_the_vocabulary_is_padded_and_cut_again(source: Path, tmp_path: Path) -> None:
    """To a multiple of 64 with zeros; back as --vocab-size states, or all rows with a note."""
    out = to("lit-llama", source, tmp_path / "out").out
    tensors, dense = stored(out), load_weights(source)
    for local, hub in (("transformer.wte.weight", "model.embed_tokens.weight"), ("lm_head.weight", "lm_head.weight")):
        assert torch.equal(tensors[local][:290], dense[hub])
        assert tensors[local].shape == (320, 96)
        assert not tensors[local][290:].any()
    whole = to("hf", out, tmp_path / "whole", heads=6)
    assert "the vocabulary is 320, as all rows of the embedding say; --vocab-size states another" in whole.notes
    assert read_config(whole.out).vocab_size == 320
    assert torch.equal(load_weights(whole.out)["lm_head.weight"][:290], dense["lm_head.weight"])
    with pytest.raises(ConfigError, match=r"a vocabulary of 200 by --vocab-size is padded to 256 rows, not 320\.$"):
        to("hf", out, tmp_path / "cut", heads=6, vocab_size=200)


def test_the_heads_must_be_stated_where_the_width_does_not_tell(source: Path, tmp_path: Path) -> None:
    """No file says how many there are; a wrong number cannot be told, one that cannot be is refused."""
    out = to("lit-llama", source, tmp_path / "out").out
    weights = out / "tiny" / "lit-llama.pth"
    for stated, fault in (
        ({}, "no file says how many heads share the width of 96: `convert --heads N` states it"),
        ({"heads": 7}, "7 heads, as --heads says, cannot share the width of 96 in pairs"),
    ):
        with pytest.raises(ConfigError) as caught:
            to("hf", out, tmp_path / "back", vocab_size=290, **stated)
        assert str(caught.value) == f"{weights}: {fault}."
        assert caught.value.exit_code == 3


def test_facts_that_its_code_does_not_compute_with_cannot_be_stated(source: Path, tmp_path: Path) -> None:
    """Another rotary base would not be this model's."""
    out = to("lit-llama", source, tmp_path / "out").out
    with pytest.raises(UsageError) as caught:
        to("hf", out, tmp_path / "back", heads=6, rope_theta=20000.0, rope_factor=8.0)
    weights = out / "tiny" / "lit-llama.pth"
    assert str(caught.value).splitlines() == [
        f"{weights}: --rope-theta says 20000.0, but there it is 10000.0.",
        f"{weights}: --rope-factor says 8.0, but there it is 1.",
    ]


def test_stated_facts_are_what_config_json_says(source: Path, tmp_path: Path) -> None:
    """The norms' epsilon and the longest sequence; no note is left of them."""
    out = to("lit-llama", source, tmp_path / "out").out
    back = to("hf", out, tmp_path / "back", heads=6, vocab_size=290, norm_eps=1e-6, max_positions=512)
    found = read_config(back.out)
    assert (found.norm_eps, found.max_positions) == (1e-6, 512)
    assert back.notes == ("the tokens of begin and end are 1 and 2, as Llama 1 has them",)


def test_a_width_that_its_scripts_do_not_know_needs_a_name(source: Path, tmp_path: Path) -> None:
    """Without --size they could not load it: each fact, and a layout that can be loaded."""
    with pytest.raises(UnsupportedError) as caught:
        convert(source, tmp_path / "out", ConvertSettings("lit-llama"))
    assert str(caught.value).splitlines() == [
        "lit-llama's scripts cannot load this model:",
        "a width of 96; it knows 4096, 5120, 6656, 8192",
        "a vocabulary of 290, padded to 320 rows; it builds 32000",
    ]
    assert caught.value.hint == (
        "litgpt holds every family; --size NAME writes the file all the same, for code that builds its own LLaMAConfig."
    )
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_a_known_width_with_other_layers_is_refused_by_name(tmp_path: Path) -> None:
    """One layer 4,096 wide is no 7B."""
    source = write_header(tmp_path / "source", **SEVEN_B | {"num_hidden_layers": 1, "vocab_size": 32001})
    with pytest.raises(UnsupportedError) as caught:
        convert(source, tmp_path / "out", ConvertSettings("lit-llama"))
    assert str(caught.value).splitlines() == [
        "lit-llama's scripts cannot load this model:",
        "1 layers; it builds 32 at a width of 4096",
        "a vocabulary of 32001, padded to 32064 rows; it builds 32000",
    ]
    assert not (tmp_path / "out").exists()


def test_a_known_model_goes_where_its_scripts_look(tmp_path: Path) -> None:
    """Llama 7B needs no name."""
    planned = plan(write_header(tmp_path / "source", **SEVEN_B), tmp_path / "out", ConvertSettings("lit-llama"))
    (shard,) = planned.plan.shards
    assert shard.filename == "7B/lit-llama.pth"
    assert len(shard.specs) == 32 * 7 + 3
    assert planned.plan.notes == (NO_TOKENIZER,)


@pytest.mark.parametrize("size", ["../out", "a/b", "..", ".", "/7B", ".lock"])
def test_the_name_is_a_folders_and_nothing_more(source: Path, tmp_path: Path, size: str) -> None:
    """No path leads out of the destination."""
    with pytest.raises(UsageError) as caught:
        to("lit-llama", source, tmp_path / "out", size=size)
    assert str(caught.value) == f"--size {size}: no name of a folder."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
