"""Checkpoints of NF4 and FP4 as transformers saves them, judged as the dense weights they stand for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llamaconv.errors import CheckpointError, ConfigError, UnsupportedError
from llamaconv.tasks.evaluate import EvaluateSettings, evaluate
from llamaconv.tasks.loading import load_dense_model, load_model
from tests.conftest import Checkpoint
from tests.models import load_weights, patch_config, save_weights
from tests.quantizers.bnb4_checkpoints import write_bnb4
from tests.tasks.runs import write_tokens

CASES = [("nf4", True, "uint8"), ("nf4", False, "bfloat16"), ("fp4", True, "float32"), ("fp4", False, "uint8")]
STATE = "model.layers.1.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"

Quantized = Callable[[tuple[str, bool, str]], Path]


@pytest.fixture(scope="module")
def quantized(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """One checkpoint per case, made of a Qwen2 in bfloat16, whose attention has biases."""
    made: dict[tuple[str, bool, str], Path] = {}

    def find(case: tuple[str, bool, str]) -> Path:
        if case not in made:
            source = checkpoint("qwen2", dtype=torch.bfloat16)
            made[case] = write_bnb4(source, tmp_path_factory.mktemp("bnb4") / "model", *case)
        return made[case]

    return find


def dequantized_by_bitsandbytes(directory: Path) -> dict[str, Tensor]:
    """The weights of all layers that transformers loads as quantized ones, in their own dtype."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    return {
        f"{name}.weight": dequantize_4bit(module.weight.data, module.weight.quant_state)
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_weight_is_the_one_that_bitsandbytes_computes_with(
    quantized: Quantized, case: tuple[str, bool, str]
) -> None:
    """Bit for bit, and every other tensor is the one that is stored."""
    directory = quantized(case)
    theirs, view = dequantized_by_bitsandbytes(directory), load_model(directory, "float32").tensors
    assert len(theirs) == 21
    for name, dense in theirs.items():
        assert torch.equal(view[name].read(), dense.float()), name
    stored = load_weights(directory)
    others = set(view.specs) - set(theirs)
    assert {name.rpartition(".")[2] for name in others} == {"weight", "bias"}
    assert all(torch.equal(view[name].read(), stored[name]) for name in others)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_judged_as_its_dense_weights(quantized: Quantized, tmp_path: Path, case: tuple[str, bool, str]) -> None:
    """The same perplexity and no KL against a dense checkpoint of the weights that bitsandbytes computes with."""
    directory = quantized(case)
    dense = shutil.copytree(directory, tmp_path / "dense")
    patch_config(dense, quantization_config=...)
    stored = {name: part for name, part in load_weights(directory).items() if not name.endswith("absmax")}
    kept = {name: part for name, part in stored.items() if "quant_" not in name}
    save_file(kept | dequantized_by_bitsandbytes(directory), dense / "model.safetensors", {"format": "pt"})
    tokens = write_tokens(tmp_path / "tokens.npy", 2, 16)
    found = evaluate(directory, EvaluateSettings(text=str(tokens), against=dense, threads=1))
    assert (found.kl, found.top1, found.ppl_ratio) == (0.0, 1.0, 1.0)


def test_a_damaged_quant_state_is_named(quantized: Quantized, tmp_path: Path) -> None:
    """Before anything is computed."""
    bad = shutil.copytree(quantized(CASES[0]), tmp_path / "bad")
    save_weights(bad, **{STATE: torch.tensor(list(b'{"shape": [1]}'), dtype=torch.uint8)})
    with pytest.raises(CheckpointError) as caught:
        load_model(bad, "float32")
    assert caught.value.message.splitlines()[0] == "model.layers.1.mlp.up_proj: quant_state: quant_type is missing."
    assert caught.value.exit_code == 3


def test_a_shape_that_config_json_does_not_give_is_a_disagreement(quantized: Quantized, tmp_path: Path) -> None:
    """N and K are those of the quant_state, as many as there are codes for."""
    bad = shutil.copytree(quantized(CASES[0]), tmp_path / "bad")
    state = bytes(load_weights(bad)[STATE].tolist())
    assert b"[160, 96]" in state
    save_weights(bad, **{STATE: torch.tensor(list(state.replace(b"[160, 96]", b"[96, 160]")), dtype=torch.uint8)})
    with pytest.raises(ConfigError) as caught:
        load_model(bad, "float32")
    assert caught.value.message.splitlines()[1:] == [
        "model.layers.1.mlp.up_proj.weight: [96, 160] in the checkpoint, [160, 96] by config.json"
    ]


def test_it_is_not_quantized_again(quantized: Quantized) -> None:
    """What it is quantized with is said."""
    with pytest.raises(UnsupportedError, match=r"already quantized \(bnb\.4bit\)$"):
        load_dense_model(quantized(CASES[0]), "auto")
