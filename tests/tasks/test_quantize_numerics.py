"""What is not finite, not positive definite, or never used."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llamaconv.errors import NotFiniteError, NumericalError
from tests.conftest import Checkpoint
from tests.dequantized import dequantize
from tests.models import load_weights, save_weights
from tests.tasks.runs import run, write_tokens

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def source(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


def spoil(source: Path, name: str, *values: float) -> None:
    """Overwrite the first values of a tensor."""
    tensor = load_weights(source)[name]
    tensor.view(-1)[: len(values)] = torch.tensor(values)
    save_weights(source, **{name: tensor})


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.2.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_nan_and_inf_in_a_weight_are_named(source: Path, tmp_path: Path, mode: str, name: str) -> None:
    """Wherever it stands, in what is quantized and in what is copied; nothing is published."""
    spoil(source, name, math.nan, math.inf)
    with pytest.raises(NotFiniteError) as caught:
        run(source, tmp_path / "out", mode)
    assert str(caught.value).startswith(f"{name}: 2 of ")
    assert caught.value.hint == "The checkpoint is damaged: get it again from its source."
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_an_activation_that_overflows_names_the_layers_it_goes_into(source: Path, tmp_path: Path) -> None:
    """With all that share it."""
    spoil(source, "model.layers.1.post_attention_layernorm.weight", 1e30)
    with pytest.raises(NumericalError) as caught:
        run(source, tmp_path / "out")
    layers = ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    assert str(caught.value) == f"NaN or Inf in the inputs of {', '.join(layers)}"
    assert caught.value.exit_code == 8
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("gptq.int4", f"{Q}: a scale overflows float16"),
        ("llm.int8", f"{Q}: a weight overflows float16, in which bitsandbytes computes LLM.int8"),
    ],
)
def test_a_weight_beyond_the_format_names_its_layer(source: Path, tmp_path: Path, mode: str, message: str) -> None:
    """And the way out."""
    spoil(source, f"{Q}.weight", 1e7)
    with pytest.raises(NumericalError) as caught:
        run(source, tmp_path / "out", mode)
    assert str(caught.value) == message
    assert "--skip" in str(caught.value.hint)


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_a_cast_that_overflows_names_the_tensor(source: Path, tmp_path: Path, mode: str) -> None:
    """What stays dense must hold its values in the dtype that the user chose."""
    spoil(source, "model.norm.weight", 1e5, -1e5)
    with pytest.raises(NumericalError) as caught:
        run(source, tmp_path / "out", mode, dtype="float16")
    assert str(caught.value) == "model.norm.weight: 2 of 96 values overflow float16"


def test_columns_that_nothing_reaches_are_rounded_near_themselves(source: Path, tmp_path: Path) -> None:
    """A dead input has no statistic; its weights still come out close, and the others do not suffer."""
    spoil(source, "model.layers.0.input_layernorm.weight", 0.0, 0.0, 0.0)
    result = run(source, tmp_path / "out")
    config = json.loads((result.out / "config.json").read_text())["quantization_config"]
    exact, ours = load_weights(source), dequantize(load_weights(result.out), config)
    difference = (ours[f"{Q}.weight"] - exact[f"{Q}.weight"]).abs()
    assert difference[:, :3].mean() < difference[:, 3:].mean() * 1.5
    assert result.layers[0].name == Q
    assert result.layers[0].error < 0.02
    assert result.layers[0].damping_raises == 0


def test_damping_is_raised_step_by_step_and_shown(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One token over and over gives a Hessian of rank one: without damping it cannot be factored."""
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.full((2, 16), 7))
    result = run(checkpoint(), tmp_path / "out", calibration=tokens, damping=0.0)
    first = result.layers[0]
    assert first.damping_raises >= 1
    assert first.damping == pytest.approx(1e-4 * 10 ** (first.damping_raises / 2))
    assert all(layer.fallback is None for layer in result.layers)
    stored = json.loads((result.out / "llamaconv.json").read_text())["layers"]
    assert [(layer["damping"], layer["damping_raises"]) for layer in stored] == [
        (layer.damping, layer.damping_raises) for layer in result.layers
    ]
    assert result.to_json()["layers"][0]["damping_raises"] == first.damping_raises


@pytest.fixture
def hopeless(source: Path) -> Path:
    """In its first block no damping helps: the Hessian's diagonal is as large as float32 allows already."""
    weights = load_weights(source)
    changes = {name: torch.zeros_like(weight) for name, weight in weights.items() if name.startswith("model.layers.0.")}
    changes["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].sign()
    changes["model.layers.0.input_layernorm.weight"] = torch.full((96,), (3.39e38 / (8 * 64)) ** 0.5)
    return save_weights(source, **changes)


def test_a_layer_that_no_damping_helps_is_named(hopeless: Path, tmp_path: Path) -> None:
    """Quantization fails rather than doing something else unasked."""
    with pytest.raises(NumericalError) as caught:
        run(hopeless, tmp_path / "out")
    layers = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    assert str(caught.value).startswith(
        f"{', '.join(layers)}: the Hessian is not positive definite, even with damping 1 (raised "
    )
    assert "--fallback rtn" in str(caught.value.hint)
    assert caught.value.exit_code == 8
    assert not (tmp_path / "out").exists()


def test_rounding_to_nearest_is_the_user_s_choice(hopeless: Path, tmp_path: Path) -> None:
    """With the fallback the run goes on, and says which layers it took over."""
    result = run(hopeless, tmp_path / "out", fallback="rtn")
    fallen = [layer.name for layer in result.layers if layer.fallback == "rtn"]
    assert fallen == [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    stored = json.loads((result.out / "llamaconv.json").read_text())
    assert [layer["name"] for layer in stored["layers"] if layer["fallback"] == "rtn"] == fallen
    assert stored["settings"]["fallback"] == "rtn"


def test_the_fallback_changes_nothing_where_it_is_not_needed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Allowed, but not used."""
    tokens = write_tokens(tmp_path / "tokens.npy")
    plain, allowed = (run(checkpoint(), tmp_path / str(f), calibration=tokens, fallback=f) for f in (None, "rtn"))
    assert [layer.fallback for layer in allowed.layers] == [None] * 21
    first, second = load_weights(plain.out), load_weights(allowed.out)
    assert all(torch.equal(first[name], second[name]) for name in first)
