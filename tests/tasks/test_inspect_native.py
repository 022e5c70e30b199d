"""Inspection of other layouts than Hugging Face's: described by their own files, and by nothing but headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llamaconv.config import read_config
from llamaconv.errors import ConfigError
from llamaconv.tasks.inspect import Shard, inspect
from llamaconv.tasks.source import contradictions
from tests.conftest import Checkpoint
from tests.models import load_weights
from tests.sources.torch_files import write_zip
from tests.tasks.conftest import Quantized
from tests.tasks.conversions import LLAMA_1, MODELS, WHOLE, stored, to
from tests.tasks.spoiled_conversions import CASES

DESCRIPTIONS = {"litgpt": "model_config.yaml", "meta": "params.json"}


@pytest.mark.parametrize("name", ["Llama 3.1", "Llama 3.2", "Qwen3", "Mixtral"])
def test_litgpt_is_described(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    """Family, sizes and parameters are the source's; every tensor agrees. Ties only the data could tell."""
    family, changes = MODELS[name]
    source = checkpoint(family, dtype=torch.bfloat16, **changes)
    out = to("litgpt", source, tmp_path / "out").out
    found, before = inspect(out), inspect(source)
    assert (found.layout, found.ranks, found.description) == ("litgpt", 1, "model_config.yaml")
    again = before.config.vocab_size * before.config.hidden_size if before.config and before.tied else 0
    assert (found.family, found.parameters, found.tied) == (before.family, (before.parameters or 0) + again, None)
    assert found.config is not None
    assert contradictions(found.config, read_config(source), unsaid=["tied"]) == []
    assert (found.quantization, found.head_stored, found.compared, found.faults) == (None, True, True, ())
    assert {spec.name: (spec.shape, spec.dtype) for spec in found.tensors} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in stored(out).items()
    }
    assert found.dtypes == {"bfloat16": found.bytes}
    size = (out / "lit_model.pth").stat().st_size
    assert found.shards == (Shard("lit_model.pth", len(found.tensors), size),)


def test_older_litgpt_is_told_apart(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By the name of the fused tensor."""
    out = to("litgpt", checkpoint(), tmp_path / "out").out
    write_zip(out / "lit_model.pth", {name.replace(".qkv.", ".attn."): t for name, t in stored(out).items()})
    found = inspect(out)
    assert (found.layout, found.description, found.faults) == ("litgpt-legacy", "model_config.yaml", ())


def test_ranks_are_counted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A shard for each; parameters count once what ranks have copies of."""
    source = checkpoint(head_dim=16)
    out = to("meta", source, tmp_path / "out", tensor_parallel=2).out
    found = inspect(out)
    assert (found.layout, found.ranks, found.description) == ("meta", 2, "params.json")
    assert [(shard.file, shard.tensors) for shard in found.shards] == [
        ("consolidated.00.pth", 30),
        ("consolidated.01.pth", 30),
    ]
    assert found.parameters == sum(tensor.numel() for tensor in load_weights(source).values())
    assert (found.head_stored, found.tied, found.compared, found.faults) == (True, None, True, ())
    told = found.to_json(tensors=False)
    assert json.loads(json.dumps(told)) == told
    assert (told["layout"], told["ranks"], told["kv_heads"], told["head_dim"]) == ("meta", 2, 2, 16)


def test_faults_of_ranks_are_reported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Not raised: of how many files it is, and what is wrong with them."""
    out = to("meta", checkpoint(head_dim=16), tmp_path / "out", tensor_parallel=2).out
    tensors = torch.load(out / "consolidated.01.pth")
    write_zip(out / "consolidated.01.pth", tensors | {"norm.weight": torch.zeros(95)})
    found = inspect(out)
    assert (found.ranks, found.compared, found.config, found.parameters) == (2, False, None, None)
    assert found.faults == (
        f"{out / 'params.json'} and the tensors disagree:",
        "01/norm.weight: [95] in the checkpoint, [96] by params.json",
    )


def test_lit_llama_is_described_where_its_width_is_known(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """No file says how many heads there are; what there is to say without is said."""
    out = to("lit-llama", checkpoint(**LLAMA_1), tmp_path / "out").out
    found = inspect(out)
    assert (found.layout, found.ranks, found.description) == ("lit-llama", 1, None)
    assert (found.config, found.compared, found.head_stored) == (None, False, True)
    assert found.faults == (
        f"{out / 'tiny' / 'lit-llama.pth'}: no file says how many heads share the width of 96: "
        "`convert --heads N` states it.",
    )
    assert found.bytes == sum(tensor.nbytes for tensor in stored(out).values())


def test_lit_llamas_codes_are_described(lit_llama_codes: Path, quantized_llama: Quantized) -> None:
    """Their width is read off the embedding's, their number off the tensors."""
    found, before = inspect(lit_llama_codes).quantization, inspect(quantized_llama(**WHOLE)).quantization
    assert found is not None
    assert before is not None
    assert (found.method, found.bits) == ("lit-llama-gptq", 4)
    assert (found.layers, before.layers) == (3 * 5 + 1, 3 * 7 + 1)


@pytest.mark.parametrize(
    "case",
    [case for case, bad in CASES.items() if bad.layout != "hf" and bad.kind is ConfigError and not bad.settings],
)
def test_faults_are_reported_and_not_raised(checkpoint: Checkpoint, tmp_path: Path, case: str) -> None:
    """Each that a conversion would be refused for."""
    bad = CASES[case]
    family, changes = MODELS[bad.name]
    source = to(bad.layout, checkpoint(family, **changes), tmp_path / "source").out
    bad.spoil(source)
    found = inspect(source)
    assert (found.layout, found.description, found.ranks) == (bad.layout, DESCRIPTIONS[bad.layout], 1)
    assert found.faults == tuple(line.replace("{source}", str(source)) for line in bad.lines)
    assert (found.compared, found.config, found.family, found.parameters) == (False, None, None, None)
    assert found.bytes == sum(tensor.nbytes for tensor in stored(source).values())
