"""litgpt's layout: its older files, its description alone, and a config.json beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from llamaconv.config import ModelConfig, read_config
from llamaconv.errors import UsageError
from llamaconv.tasks.source import contradictions
from tests.conftest import Checkpoint
from tests.models import load_weights, patch_config
from tests.sources.torch_files import write_zip
from tests.tasks.conversions import MODELS, same_bits, stored, to


def interleaved(config: ModelConfig, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One group after the other: its query heads, its key head, its value head."""
    heads = [
        tensor.unflatten(0, (config.kv_heads, rows))
        for tensor, rows in (
            (queries, config.heads // config.kv_heads * config.head_dim),
            (keys, config.head_dim),
            (values, config.head_dim),
        )
    ]
    return torch.cat(heads, 1).flatten(0, 1)


def older(litgpt: Path, source: Path) -> dict[str, Tensor]:
    """What litgpt wrote before December 2024 for a model in Hugging Face's layout."""
    config, hub, tensors = read_config(source), load_weights(source), stored(litgpt)
    for layer in range(config.layers):
        for leaf in ("weight", "bias"):
            parts = [f"model.layers.{layer}.self_attn.{part}_proj.{leaf}" for part in "qkv"]
            if tensors.pop(f"transformer.h.{layer}.attn.qkv.{leaf}", None) is not None:
                fused = interleaved(config, *(hub[name] for name in parts))
                tensors[f"transformer.h.{layer}.attn.attn.{leaf}"] = fused
    return tensors


@pytest.fixture(params=["Llama 2", "Llama 3.2", "Qwen2", "Mixtral"])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_older_files_are_read(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    """Their fused tensor has another name and another order; what comes of them is the model, bit for bit."""
    family, changes = MODELS[name]
    source = checkpoint(family, **changes)
    litgpt = to("litgpt", source, tmp_path / "litgpt").out
    newer = stored(litgpt)
    write_zip(litgpt / "lit_model.pth", older(litgpt, source))
    back = to("hf", litgpt, tmp_path / "back")
    assert back.source_layout == "litgpt-legacy"
    assert same_bits(load_weights(back.out), load_weights(source))
    upgraded = to("litgpt", litgpt, tmp_path / "newer")
    assert same_bits(stored(upgraded.out), newer)


def test_files_of_a_training_run_are_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """They keep the tensors under "model"."""
    litgpt = to("litgpt", checkpoint(), tmp_path / "litgpt").out
    write_zip(litgpt / "lit_model.pth", {"model": stored(litgpt), "step": 3})
    back = to("hf", litgpt, tmp_path / "back").out
    assert same_bits(load_weights(back), load_weights(checkpoint()))


@pytest.mark.parametrize(
    "name",
    ["Llama 2", "Llama 3.1", "Llama 3.2", "Llama with biases", "Mistral with a window", "Qwen2", "Qwen3", "Mixtral"],
)
def test_its_description_alone_is_enough(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    """Without config.json the model is the same; the tokens of begin and end take their usual value."""
    family, changes = MODELS[name]
    source = checkpoint(family, **changes)
    litgpt = to("litgpt", source, tmp_path / "litgpt").out
    (litgpt / "config.json").unlink()
    back = to("hf", litgpt, tmp_path / "back")
    assert same_bits(load_weights(back.out), load_weights(source))
    found, config = read_config(back.out), read_config(source)
    assert contradictions(found, config) == []
    assert (found.max_positions, found.architectures) == (config.max_positions, config.architectures)
    (note,) = back.notes
    assert note.startswith("the tokens of begin and end are ")


def test_a_config_json_that_says_the_same_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With all that model_config.yaml has no place for, on to litgpt again too."""
    source = shutil.copytree(checkpoint(), tmp_path / "source")
    patch_config(source, bos_token_id=7, note="mine")
    litgpt = to("litgpt", source, tmp_path / "litgpt").out
    assert (litgpt / "config.json").read_bytes() == (source / "config.json").read_bytes()
    again = to("litgpt", litgpt, tmp_path / "again").out
    for place in (to("hf", litgpt, tmp_path / "hf").out, again):
        raw = read_config(place).raw
        assert (raw["bos_token_id"], raw["note"]) == (7, "mine")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"n_head": 12, "n_query_groups": 4, "head_size": 8},
            "heads is 6, not 12; kv_heads is 2, not 4; head_dim is 16, not 8",
        ),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-05, not 1e-06"),
        ({"rope_base": 500000}, "rope_theta is 25000.0, not 500000.0"),
        ({"rope_adjustments": {"factor": 2.0}}, "rope_scaling is None, not {'rope_type': 'linear', 'factor': 2.0}"),
    ],
)
def test_a_config_json_that_says_otherwise_is_passed_over(
    checkpoint: Checkpoint, tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    """litgpt computes by model_config.yaml; each contradiction is told."""
    litgpt = to("litgpt", checkpoint(head_dim=16), tmp_path / "litgpt").out
    path = litgpt / "model_config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    back = to("hf", litgpt, tmp_path / "back")
    assert back.notes[-1] == f"config.json beside model_config.yaml is passed over: {fault}"
    assert read_config(back.out).raw["bos_token_id"] == 1


def test_a_window_that_config_json_does_not_have_is_a_contradiction(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It changes what is computed, though no tensor."""
    litgpt = to("litgpt", checkpoint("mistral"), tmp_path / "litgpt").out
    patch_config(litgpt, sliding_window=48)
    back = to("hf", litgpt, tmp_path / "back")
    assert back.notes[-1] == "config.json beside model_config.yaml is passed over: sliding_window is 48, not 24"
    assert read_config(back.out).raw["sliding_window"] == 24


def test_what_its_description_says_cannot_be_stated_otherwise(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """All options that contradict it, in one error; those that agree are no harm."""
    litgpt = to("litgpt", checkpoint(head_dim=16), tmp_path / "litgpt").out
    with pytest.raises(UsageError) as caught:
        to("hf", litgpt, tmp_path / "back", heads=12, vocab_size=288, norm_eps=1e-6)
    path = litgpt / "model_config.yaml"
    assert str(caught.value).splitlines() == [
        f"{path}: --heads says 12, but there it is 6.",
        f"{path}: --norm-eps says 1e-06, but there it is 1e-05.",
    ]
    assert caught.value.exit_code == 2
    assert not (tmp_path / "back").exists()
