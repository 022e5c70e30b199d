"""Checkpoints that their own files describe: ties, copies, ranks, and a config.json beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from llamaconv.errors import CheckpointError, ConfigError
from llamaconv.layouts.description import Given
from llamaconv.sources.open import open_checkpoint
from llamaconv.tasks.open_source import layout_of, open_source
from llamaconv.tasks.source_native import open_native, rank_count
from tests.conftest import Checkpoint
from tests.models import load_weights, patch_config
from tests.sources.torch_files import write_ranks, write_zip
from tests.tasks.conversions import stored, to

HEADS = {"litgpt": ("lit_model.pth", "lm_head.weight"), "meta": ("consolidated.00.pth", "output.weight")}


@pytest.fixture(params=HEADS)
def layout(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_a_head_is_tied_where_it_is_the_embedding(checkpoint: Checkpoint, tmp_path: Path, layout: str) -> None:
    """No description says so: the same bits do, and one bit less does not."""
    tied = to(layout, checkpoint(head_dim=16, tie_word_embeddings=True), tmp_path / "tied").out
    (tied / "config.json").unlink(missing_ok=True)
    source = open_source(tied)
    assert source.config.tied
    assert "lm_head.weight" not in source.tensors().specs
    file, head = HEADS[layout]
    tensors = stored(tied)
    tensors[head][-1, -1] += 1
    write_zip(tied / file, tensors)
    source = open_source(tied)
    assert not source.config.tied
    assert torch.equal(source.tensors()["lm_head.weight"].read(), tensors[head])


def test_a_head_that_is_missing_is_the_embedding_and_that_is_told(
    checkpoint: Checkpoint, tmp_path: Path, layout: str
) -> None:
    """Some tools leave it out; whoever lost it shall know."""
    out = to(layout, checkpoint(head_dim=16), tmp_path / "out").out
    (out / "config.json").unlink(missing_ok=True)
    file, head = HEADS[layout]
    write_zip(out / file, {name: tensor for name, tensor in stored(out).items() if name != head})
    source = open_source(out)
    assert source.config.tied
    assert source.notes[-1] == f"no file holds {head}, so the head is taken for the embedding"
    assert "lm_head.weight" not in source.tensors().specs


def test_nothing_need_be_read_to_describe(checkpoint: Checkpoint, tmp_path: Path, layout: str) -> None:
    """Then a head counts as one of its own, and copies are not looked at."""
    out = to(layout, checkpoint(head_dim=16, tie_word_embeddings=True), tmp_path / "out").out
    (out / "config.json").unlink(missing_ok=True)
    checkpoint_there = open_checkpoint(out)
    file, _ = HEADS[layout]
    (out / file).unlink()
    source = open_native(checkpoint_there, layout_of(checkpoint_there), Given(), compare=False)
    assert not source.config.tied


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_are_joined(checkpoint: Checkpoint, tmp_path: Path, ranks: int) -> None:
    """As many as there are files; a single one has no prefix."""
    out = to("meta", checkpoint(head_dim=16), tmp_path / "out", tensor_parallel=ranks).out
    source = open_source(out)
    assert (source.layout.ranks, rank_count(source.stored.specs)) == (ranks, ranks)
    assert all(name.startswith(("00/", "01/")) == (ranks == 2) for name in source.stored.specs)
    hub = load_weights(checkpoint(head_dim=16))
    assert all(torch.equal(source.tensors()[name].read(), tensor) for name, tensor in hub.items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("split", ["rows", "columns"])
def test_ranks_say_themselves_how_they_share_the_embedding(
    checkpoint: Checkpoint, tmp_path: Path, split: str, tied: bool
) -> None:
    """By its shape: nothing has to be stated. Ties are seen through either."""
    source = checkpoint(head_dim=16, tie_word_embeddings=tied)
    out = to("meta", source, tmp_path / "out", tensor_parallel=2, embedding_split=split).out
    opened = open_source(out)
    embedding = opened.tensors()["model.embed_tokens.weight"].read()
    assert torch.equal(embedding, load_weights(source)["model.embed_tokens.weight"])
    assert opened.config.tied == tied


def test_copies_must_be_equal_in_every_rank(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """All that differ are named, in the order of the model; NaN equals NaN."""
    out = to("meta", checkpoint(head_dim=16), tmp_path / "out", tensor_parallel=2).out
    ranks = [torch.load(out / f"consolidated.0{rank}.pth") for rank in (0, 1)]
    for rank in ranks:
        rank["layers.0.ffn_norm.weight"][3] = torch.nan
    write_ranks(out, ranks)
    open_source(out)
    ranks[1]["layers.2.attention_norm.weight"] = ranks[1]["layers.2.attention_norm.weight"].clone() + 1
    ranks[1]["norm.weight"] = -ranks[1]["norm.weight"]
    write_ranks(out, ranks)
    with pytest.raises(CheckpointError) as caught:
        open_source(out)
    assert str(caught.value).splitlines() == [
        f"{out}: the files are not of one model:",
        *(
            f"01/{name} differs from 00/{name}, of which it should be a copy"
            for name in ("layers.2.attention_norm.weight", "norm.weight")
        ),
    ]
    assert caught.value.hint == "Get all files of the checkpoint again from one place."


def test_a_config_json_beside_litgpts_own_is_heeded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Where both say the same of what is computed; then nothing is left to be noted."""
    source = shutil.copytree(checkpoint(), tmp_path / "source")
    out = to("litgpt", patch_config(source, bos_token_id=9, max_position_embeddings=777), tmp_path / "out").out
    opened = open_source(out)
    assert (opened.config.raw["bos_token_id"], opened.config.max_positions) == (9, 777)
    assert (opened.notes, opened.beside) == ((), out / "config.json")


def test_a_config_json_that_contradicts_is_told_and_passed_over(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """litgpt heeds its own; a quantization that it knows nothing of does not go through either."""
    out = to("litgpt", checkpoint(), tmp_path / "out").out
    patch_config(out, rms_norm_eps=1e-3, tie_word_embeddings=True)
    opened = open_source(out)
    assert opened.notes[-1] == (
        "config.json beside model_config.yaml is passed over: tied is True, not False; norm_eps is 0.001, not 1e-05"
    )
    assert (opened.config.norm_eps, opened.config.tied, opened.beside) == (1e-5, False, None)
    patch_config(out, rms_norm_eps=1e-5, tie_word_embeddings=False, quantization_config={"quant_method": "gptq"})
    assert open_source(out).notes[-1] == "config.json beside model_config.yaml is passed over: it is quantized"


def test_a_config_json_beside_that_cannot_be_read_is_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It may say anything; whoever has it shall mend it or take it away."""
    out = to("litgpt", checkpoint(), tmp_path / "out").out
    (out / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: not JSON"):
        open_source(out)


def test_metas_files_have_nothing_beside(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A config.json that happens to be there agrees or is told of, as litgpt's."""
    source = checkpoint(head_dim=16)
    out = to("meta", source, tmp_path / "out").out
    shutil.copy(source / "config.json", out)
    assert open_source(out).config.raw == json.loads((source / "config.json").read_text())
