"""Meta's own layout: what its code computes with, however many files it is split over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamaconv.config import read_config
from llamaconv.errors import CheckpointError, ConfigError, UnsupportedError
from llamaconv.tasks.source import contradictions
from tests.conftest import Checkpoint
from tests.layouts.native import meta_logits
from tests.models import load_weights, random_tokens, reference, reference_logits
from tests.sources.torch_files import write_ranks
from tests.tasks.conversions import LLAMA_1, MODELS, same_bits, stored, to

# Eight heads of 12, four of them key-value heads: four ranks have two and one.
SPLIT: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 12, "num_hidden_layers": 2}
RANKS = (1, 2, 4)


def of_rank(directory: Path, rank: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(directory / f"consolidated.{rank:02}.pth", weights_only=True)
    return tensors


def joined(directory: Path, ranks: int, embedding: str) -> dict[str, Tensor]:
    """The whole tensors, put together by the letter of the format."""
    parts = [of_rank(directory, rank) for rank in range(ranks)]
    axes = {"wo": 1, "w2": 1, "tok_embeddings": 0 if embedding == "rows" else 1}
    whole = {}
    for name, tensor in parts[0].items():
        axis = axes.get(name.split(".")[-2], 0)
        whole[name] = tensor if tensor.dim() == 1 else torch.cat([part[name] for part in parts], axis)
    return whole


@pytest.mark.parametrize("name", ["Llama 1", "Llama 3.1", "Llama 3.2", "Mistral"])
def test_metas_code_computes_the_same_with_it(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    """From what is in the files alone, at positions past 1,000 too."""
    family, changes = MODELS[name]
    source = checkpoint(family, **{"max_position_embeddings": 2048, **changes})
    out = to("meta", source, tmp_path / "out").out
    config = read_config(source)
    (tokens,) = random_tokens(1, 1200, vocab=config.vocab_size)
    params = json.loads((out / "params.json").read_text())
    logits = meta_logits(of_rank(out, 0), params, tokens)[1000:]
    expected = reference_logits(reference(source), tokens)[1000:]
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("embedding", ["rows", "columns"])
@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_there_and_back(checkpoint: Checkpoint, tmp_path: Path, ranks: int, embedding: str, tied: bool) -> None:
    """Each rank in a file, all of the shapes that Meta's code builds; joined they are the source, bit for bit."""
    source = checkpoint(**SPLIT, tie_word_embeddings=tied)
    out = to("meta", source, tmp_path / "meta", tensor_parallel=ranks, embedding_split=embedding).out
    assert sorted(path.name for path in out.glob("*.pth")) == [f"consolidated.{rank:02}.pth" for rank in range(ranks)]
    for rank in range(ranks):
        assert {name: list(tensor.shape) for name, tensor in of_rank(out, rank).items()} == {
            "tok_embeddings.weight": [288 // ranks, 96] if embedding == "rows" else [288, 96 // ranks],
            "norm.weight": [96],
            "output.weight": [288 // ranks, 96],
            **{
                f"layers.{layer}.{name}": shape
                for layer in range(2)
                for name, shape in {
                    "attention.wq.weight": [96 // ranks, 96],
                    "attention.wk.weight": [48 // ranks, 96],
                    "attention.wv.weight": [48 // ranks, 96],
                    "attention.wo.weight": [96, 96 // ranks],
                    "feed_forward.w1.weight": [160 // ranks, 96],
                    "feed_forward.w2.weight": [96, 160 // ranks],
                    "feed_forward.w3.weight": [160 // ranks, 96],
                    "attention_norm.weight": [96],
                    "ffn_norm.weight": [96],
                }.items()
            },
        }
    whole = to("meta", source, tmp_path / "whole").out
    assert same_bits(joined(out, ranks, embedding), of_rank(whole, 0))
    back = to("hf", out, tmp_path / "hf").out
    assert same_bits(load_weights(back), load_weights(source))
    assert contradictions(read_config(back), read_config(source)) == []


def test_the_embedding_is_split_as_the_vocabulary_tells(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By columns for Llama 1 and 2, by rows for a vocabulary of Llama 3's size."""
    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "head_dim": 8}
    for vocabulary, shape in ((288, (288, 8)), (128_256, (64_128, 16))):
        source = checkpoint(**tiny, vocab_size=vocabulary)
        out = to("meta", source, tmp_path / str(vocabulary), tensor_parallel=2).out
        assert of_rank(out, 1)["tok_embeddings.weight"].shape == shape
        back = to("hf", out, tmp_path / f"{vocabulary} back").out
        assert same_bits(load_weights(back), load_weights(source))


@pytest.mark.parametrize(("one", "other"), [(1, 4), (4, 2), (2, 1)])
def test_ranks_are_regrouped(checkpoint: Checkpoint, tmp_path: Path, one: int, other: int) -> None:
    """From any number of files to any other, as if from the model itself."""
    source = checkpoint(**SPLIT)
    first = to("meta", source, tmp_path / "first", tensor_parallel=one).out
    second = to("meta", first, tmp_path / "second", tensor_parallel=other).out
    assert same_bits(stored(second), stored(to("meta", source, tmp_path / "direct", tensor_parallel=other).out))


def test_ranks_that_cannot_share_evenly_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Two key-value heads are not four ranks', whatever else could be split; nothing is written."""
    with pytest.raises(UnsupportedError) as caught:
        to("meta", checkpoint(head_dim=16), tmp_path / "out", tensor_parallel=4)
    assert str(caught.value).splitlines() == [
        "The layout meta cannot hold this model:",
        "6 heads cannot be split over 4 ranks",
        "2 key-value heads cannot be split over 4 ranks",
    ]
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def split_in_two(checkpoint: Checkpoint, directory: Path) -> list[dict[str, Tensor]]:
    """The tensors of two ranks, and a directory with their params.json alone."""
    out = to("meta", checkpoint(**SPLIT), directory.parent / "split", tensor_parallel=2).out
    directory.mkdir()
    shutil.copy(out / "params.json", directory)
    return [of_rank(out, rank) for rank in (0, 1)]


def test_ranks_of_two_models_are_told_by_their_norms(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Every rank has a copy of each norm: all that differ are named."""
    ranks = split_in_two(checkpoint, tmp_path / "mixed")
    ranks[1]["norm.weight"] += 1
    ranks[1]["layers.1.ffn_norm.weight"][3] = -7
    mixed = write_ranks(tmp_path / "mixed", ranks)
    with pytest.raises(CheckpointError) as caught:
        to("hf", mixed, tmp_path / "out")
    assert str(caught.value).splitlines() == [
        f"{mixed}: the files are not of one model:",
        "01/layers.1.ffn_norm.weight differs from 00/layers.1.ffn_norm.weight, of which it should be a copy",
        "01/norm.weight differs from 00/norm.weight, of which it should be a copy",
    ]
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_ranks_of_two_models_are_told_by_their_shapes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """All shapes that do not go together, and all that is missing or too much, in one error."""
    ranks = split_in_two(checkpoint, tmp_path / "mixed")
    ranks[1]["layers.0.attention.wq.weight"] = torch.zeros(24, 96)
    ranks[1]["output.weight"] = torch.zeros(150, 96)
    del ranks[1]["layers.1.feed_forward.w2.weight"]
    ranks[1]["layers.2.attention_norm.weight"] = torch.zeros(96)
    mixed = write_ranks(tmp_path / "mixed", ranks)
    with pytest.raises(ConfigError) as caught:
        to("hf", mixed, tmp_path / "out")
    assert str(caught.value).splitlines() == [
        f"{mixed / 'params.json'} and the tensors disagree:",
        "01/layers.0.attention.wq.weight: [24, 96] in the checkpoint, [48, 96] by params.json",
        "01/layers.1.feed_forward.w2.weight: missing from the checkpoint, [96, 80] by params.json",
        "01/output.weight: [150, 96] in the checkpoint, [144, 96] by params.json",
        "01/layers.2.attention_norm.weight: [96] in the checkpoint, no such tensor by params.json",
    ]
    assert not (tmp_path / "out").exists()


def test_a_missing_rank_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By its file's name, where a later one is there; else by the shapes that do not reach."""
    out = to("meta", checkpoint(**SPLIT), tmp_path / "meta", tensor_parallel=4).out
    (out / "consolidated.02.pth").unlink()
    with pytest.raises(CheckpointError) as caught:
        to("hf", out, tmp_path / "out")
    assert str(caught.value) == f"{out}: the shard 'consolidated.02.pth' is missing."
    (out / "consolidated.03.pth").unlink()
    with pytest.raises(ConfigError) as caught:
        to("hf", out, tmp_path / "out")
    assert "but tok_embeddings.weight is [288, 24] in each of 2 files" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rotary_frequencies_in_old_files_are_passed_over(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Llama 1 and 2 hold rope.freqs, which follow from the rest; in every rank."""
    ranks = split_in_two(checkpoint, tmp_path / "old")
    for tensors in ranks:
        tensors["rope.freqs"] = torch.ones(6)
    back = to("hf", write_ranks(tmp_path / "old", ranks), tmp_path / "out").out
    assert same_bits(load_weights(back), load_weights(checkpoint(**SPLIT)))


def test_norms_that_share_storage_with_the_embedding_come_out_right(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Views into one storage, as some releases have them, are read where they lie."""
    out = to("meta", checkpoint(**LLAMA_1), tmp_path / "meta").out
    tensors = of_rank(out, 0)
    storage = torch.cat([tensors["tok_embeddings.weight"].flatten(), tensors["norm.weight"]])
    tensors["tok_embeddings.weight"] = storage[:-96].view(290, 96)
    tensors["norm.weight"] = storage[-96:]
    write_ranks(out, [tensors])
    back = to("hf", out, tmp_path / "hf").out
    assert same_bits(load_weights(back), load_weights(checkpoint(**LLAMA_1)))


def test_what_no_file_says_takes_the_usual_value_and_is_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Each fact with the option that states it; stated, it is what config.json says, and no note is left of it."""
    _, changes = MODELS["Llama 3.1"]
    source = checkpoint(**{**changes, "rope_parameters": changes["rope_parameters"] | {"factor": 32.0}})
    out = to("meta", source, tmp_path / "meta").out
    result = to("hf", out, tmp_path / "hf")
    assert result.notes == (
        "the tokens of begin and end are 1 and 2, as Llama 3.2's base models have them",
        "the longest sequence is 131072, as Llama 3.2 has it; --max-positions states another",
        "the factor of the rope scaling is 32.0, as Llama 3.2 has it; --rope-factor states another",
    )
    told = to("hf", out, tmp_path / "told", max_positions=16384, rope_factor=8.0)
    config = read_config(told.out)
    assert (config.max_positions, (config.rope_scaling or {})["factor"]) == (16384, 8.0)
    assert told.notes == result.notes[:1]
