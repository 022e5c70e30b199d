"""Quantized checkpoints of other tools, and damaged ones."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamaconv.errors import CheckpointError, ConfigError, NotFiniteError, UnsupportedError
from llamaconv.tasks.evaluate import EvaluateSettings, Evaluation, evaluate
from tests.conftest import Checkpoint
from tests.models import patch_config, save_weights
from tests.tasks.runs import run, write_tokens

Quantized = Callable[[str], Path]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("text") / "tokens.npy", 2, 16)


@pytest.fixture(scope="module")
def quantized(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """One artifact per mode, made of the plain Llama."""
    made: dict[str, Path] = {}

    def find(mode: str) -> Path:
        if mode not in made:
            made[mode] = run(checkpoint(), tmp_path_factory.mktemp(mode) / "out", mode).out
        return made[mode]

    return find


def judge(model: Path, text: Path) -> Evaluation:
    return evaluate(model, EvaluateSettings(text=str(text), threads=1))


def spoiled(quantized: Quantized, tmp_path: Path, mode: str, **tensors: Tensor | None) -> Path:
    prefix = "model.layers.1.mlp.up_proj."
    return save_weights(
        shutil.copytree(quantized(mode), tmp_path / "bad"),
        **{prefix + name: tensor for name, tensor in tensors.items()},
    )


def test_a_layer_without_g_idx_has_its_groups_in_order(quantized: Quantized, tmp_path: Path, tokens: Path) -> None:
    """As older tools wrote it."""
    bare = spoiled(quantized, tmp_path, "gptq.int4", g_idx=None)
    assert judge(bare, tokens).perplexity == judge(quantized("gptq.int4"), tokens).perplexity


@pytest.mark.parametrize(
    ("mode", "tensors", "kind", "message"),
    [
        (
            "gptq.int4",
            {"g_idx": torch.full((96,), 7, dtype=torch.int32)},
            CheckpointError,
            "model.layers.1.mlp.up_proj: g_idx names groups from 7 to 7 of 3",
        ),
        (
            "gptq.int4",
            {"scales": torch.full((3, 160), math.nan, dtype=torch.float16)},
            NotFiniteError,
            "model.layers.1.mlp.up_proj.scales: 480 of 480 values are NaN or Inf",
        ),
        (
            "llm.int8",
            {"SCB": torch.full((160,), math.inf)},
            NotFiniteError,
            "model.layers.1.mlp.up_proj.SCB: 160 of 160 values are NaN or Inf",
        ),
        (
            "llm.int8",
            {"weight_format": torch.tensor(2, dtype=torch.uint8)},
            UnsupportedError,
            "model.layers.1.mlp.up_proj: weight_format 2 is not row-major",
        ),
    ],
)
def test_damaged_data_names_its_layer(
    quantized: Quantized, tmp_path: Path, tokens: Path, mode: str, tensors: dict[str, Tensor], kind: type, message: str
) -> None:
    """Found when the layer is read."""
    with pytest.raises(kind) as caught:
        judge(spoiled(quantized, tmp_path, mode, **tensors), tokens)
    assert str(caught.value) == message
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({"scales": None}, "model.layers.1.mlp.up_proj: "),
        ({"scales": torch.ones(2, 160, dtype=torch.float16)}, "model.layers.1.mlp.up_proj: "),
        ({"qweight": None}, "model.layers.1.mlp.up_proj.weight: missing"),
    ],
)
def test_parts_that_do_not_go_together_are_named(
    quantized: Quantized, tmp_path: Path, tokens: Path, tensors: dict[str, Tensor | None], line: str
) -> None:
    """Found in the headers, beside all other disagreements."""
    with pytest.raises(ConfigError) as caught:
        judge(spoiled(quantized, tmp_path, "gptq.int4", **tensors), tokens)
    assert any(found.startswith(line) for found in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("mode", "changes", "line"),
    [
        ("gptq.int4", {"bits": 8}, "codes of 4 bits in the checkpoint, of 8 by config.json"),
        ("gptq.int4", None, " is stored as gptq, which config.json does not say"),
        ("llm.int8", {"quant_method": "gptq", "bits": 8}, " is stored as bitsandbytes, which config.json does not say"),
    ],
)
def test_a_config_that_tells_another_quantization_is_refused(
    quantized: Quantized, tmp_path: Path, tokens: Path, mode: str, changes: dict[str, Any] | None, line: str
) -> None:
    """For every layer."""
    bad = shutil.copytree(quantized(mode), tmp_path / "bad")
    told = json.loads((bad / "config.json").read_text())["quantization_config"]
    patch_config(bad, quantization_config=... if changes is None else told | changes)
    (bad / "quantize_config.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError) as caught:
        judge(bad, tokens)
    assert sum(line in found for found in str(caught.value).splitlines()) == 21
