"""Opening a checkpoint: its layout is told by its tensors' names, or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamaconv.errors import CheckpointError, ConfigError, InputError, UsageError
from llamaconv.layouts.description import Given
from llamaconv.sources.open import open_checkpoint
from llamaconv.tasks.open_source import layout_of, open_source
from tests.conftest import Checkpoint
from tests.models import patch_config, save_weights
from tests.tasks.conftest import Quantized
from tests.tasks.conversions import LLAMA_1, PACKED_STATED, WHOLE, to

FACTS = Given(heads=6, vocab_size=290)


@pytest.mark.parametrize("layout", ["litgpt", "lit-llama", "meta"])
def test_the_layout_is_told_by_the_names(checkpoint: Checkpoint, tmp_path: Path, layout: str) -> None:
    """Or by the user, who is right here; what he says of the model is heeded where nothing else says it."""
    out = to(layout, checkpoint(**LLAMA_1), tmp_path / "out").out
    assert layout_of(open_checkpoint(out)).name == layout
    for said in (None, layout):
        source = open_source(out, said, FACTS)
        assert (source.layout.name, source.config.vocab_size, source.config.heads) == (layout, 290, 6)


def test_a_weight_file_or_an_index_stands_for_its_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With the description beside it."""
    shards = to("hf", checkpoint(), tmp_path / "shards", max_shard_size=300_000).out
    meta = to("meta", checkpoint(head_dim=16), tmp_path / "meta").out
    assert open_source(shards / "model.safetensors.index.json").config.layers == 3
    assert open_source(checkpoint() / "model.safetensors").layout.name == "hf"
    assert open_source(meta / "consolidated.00.pth").layout.name == "meta"
    with pytest.raises(ConfigError, match=r"disagree:\n.*: missing from the checkpoint"):
        open_source(min(shards.glob("model-*.safetensors")))


def test_a_config_json_makes_it_hugging_faces(tmp_path: Path) -> None:
    """Also where no table knows the names: then only the number of layers is held against them."""
    raw = {
        "model_type": "nonesuch", "hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 11,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file({"a.weight": torch.zeros(3), "b.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    assert (source.layout.name, list(source.stored.specs)) == ("hf", ["a.weight", "b.weight"])
    patch_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(ConfigError, match=r"\n3 layers by config\.json, but the checkpoint has 2 tensors$"):
        open_source(tmp_path)


def test_facts_cannot_be_stated_where_config_json_is(checkpoint: Checkpoint) -> None:
    """It says them all."""
    with pytest.raises(UsageError) as caught:
        open_source(checkpoint(), given=Given(rope_theta=1.0))
    assert str(caught.value) == f"{checkpoint()}: its config.json says what the model is."
    assert caught.value.hint == "Facts are stated for layouts that do not carry them; change config.json itself."
    assert open_source(checkpoint(), given=Given()).config.heads == 6


def test_no_layout_is_guessed(tmp_path: Path) -> None:
    """Names that no layout knows are shown, the first of them."""
    for count, names in ((2, "'a.weight', 'b.weight'"), (5, "'a.weight', 'b.weight', 'c.weight', …")):
        save_file({f"{letter}.weight": torch.zeros(2) for letter in "abcde"[:count]}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            open_source(tmp_path)
        assert str(caught.value) == f"{tmp_path}: no layout is known in which tensors have such names ({names})."
        assert caught.value.facts["nearest"] is None
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("layout", ["litgpt", "litgpt-legacy", "lit-llama", "meta"])
def test_a_layout_that_it_does_not_have_is_an_error(checkpoint: Checkpoint, layout: str) -> None:
    """Whatever the user says."""
    with pytest.raises(InputError):
        open_source(checkpoint(), layout)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"bits": 8}, "codes of 4 bits in the checkpoint, of 8 by config.json"),
        (None, "is stored as gptq, which config.json does not say"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "is stored as gptq, which config.json does not say"),
    ],
)
def test_how_it_is_quantized_is_held_against_config_json(
    quantized_llama: Quantized, tmp_path: Path, changes: dict[str, Any] | None, fault: str
) -> None:
    """Layer by layer, all in one error."""
    source = shutil.copytree(quantized_llama(**WHOLE), tmp_path / "source")
    (source / "quantize_config.json").unlink()
    told = json.loads((source / "config.json").read_text())["quantization_config"]
    patch_config(source, quantization_config=... if changes is None else told | changes)
    with pytest.raises(ConfigError) as caught:
        open_source(source)
    assert sum(fault in line for line in str(caught.value).splitlines()) == 22


def test_older_files_describe_gptq_in_quantize_config_only(quantized_llama: Quantized, tmp_path: Path) -> None:
    """That is then what reads it."""
    source = shutil.copytree(quantized_llama(**WHOLE), tmp_path / "source")
    patch_config(source, quantization_config=...)
    opened = open_source(source)
    assert opened.quantization == json.loads((source / "quantize_config.json").read_text())
    assert opened.dequantizer is not None
    assert opened.dequantizer.bits == 4


def test_parts_that_do_not_go_together_are_named(quantized_llama: Quantized, tmp_path: Path) -> None:
    """With what is there of them, beside the weight that is then missing."""
    source = shutil.copytree(quantized_llama(**WHOLE), tmp_path / "source")
    layer = "model.layers.1.mlp.up_proj"
    save_weights(source, **{f"{layer}.scales": None})
    with pytest.raises(ConfigError) as caught:
        open_source(source)
    assert str(caught.value).splitlines()[1:] == [
        f"{layer}: {layer}.qweight, {layer}.qzeros, {layer}.g_idx do not go together",
        f"{layer}.weight: missing from the checkpoint, [256, 96] by config.json",
    ]


def test_lit_llamas_codes_need_no_description(lit_llama_codes: Path) -> None:
    """Their width and their groups are the tensors'; what the user states is the rest."""
    source = open_source(lit_llama_codes, given=Given(**PACKED_STATED))
    assert source.quantization == {"quant_method": "lit-llama-gptq", "bits": 4}
    assert {(layer.bits, layer.groups) for layer in source.layers} == {(4, 1)}
