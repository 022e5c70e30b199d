from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from llamaconv.casts import named_dtype
from llamaconv.errors import ConfigError, UnsupportedError, UsageError
from llamaconv.tasks.loading import (
    choose_device,
    choose_dtype,
    choose_workers,
    load_dense_model,
    load_model,
)
from tests.conftest import Checkpoint
from tests.models import FAMILIES, load_weights, save_weights


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_loaded_without_its_weights(checkpoint: Checkpoint, family: str, tied: bool) -> None:
    """Families with a table of ours, and others that transformers knows."""
    model = load_model(checkpoint(family, tie_word_embeddings=tied), "float32")
    assert model.config.model_type == family
    assert model.source.quantization is None
    assert ("lm_head.weight" in model.specs) == (not tied)
    assert all(parameter.is_meta for parameter in model.skeleton.model.parameters())


def test_a_family_without_a_table_is_held_against_transformers_own_model(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """What is missing, extra or misshapen is in one error."""
    source = shutil.copytree(checkpoint("gemma2", tie_word_embeddings=True), tmp_path / "model")
    save_weights(
        source,
        **{
            "model.norm.weight": None,
            "model.layers.0.mlp.bias": torch.zeros(3),
            "model.layers.2.mlp.up_proj.weight": torch.zeros(96, 96),
        },
    )
    with pytest.raises(ConfigError) as caught:
        load_model(source, "float32")
    assert str(caught.value).splitlines() == [
        f"{source / 'config.json'} and the tensors disagree:",
        "model.norm.weight: missing from the checkpoint, [96] by config.json",
        "model.layers.0.mlp.bias: not in the model that config.json describes",
        "model.layers.2.mlp.up_proj.weight: [96, 96] in the checkpoint, [160, 96] by config.json",
    ]


@pytest.mark.parametrize(
    ("name", "stored", "chosen"),
    [
        ("auto", torch.bfloat16, torch.bfloat16),
        ("auto", torch.float16, torch.float32),
        ("auto", torch.float32, torch.float32),
        ("auto", None, torch.float32),
        ("float16", torch.bfloat16, torch.float16),
        ("float32", torch.bfloat16, torch.float32),
    ],
)
def test_forwards_run_in_float32_but_for_bfloat16_sources(
    name: str, stored: torch.dtype | None, chosen: torch.dtype
) -> None:
    """float16 overflows in the residual streams of many models, so it is the user's choice alone."""
    assert choose_dtype(name, stored) == chosen


@pytest.mark.parametrize("name", ["int8", "float64", "torch", "Tensor", ""])
def test_an_unknown_dtype_is_a_usage_error(name: str) -> None:
    """Whatever torch has of that name."""
    with pytest.raises(UsageError) as caught:
        named_dtype(name)
    assert str(caught.value) == f"unknown dtype {name!r}"
    assert caught.value.hint == "Use one of float32, bfloat16, float16."


def test_a_device_that_is_not_there_is_refused() -> None:
    """The default is one that is."""
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UnsupportedError, match=r"^no such device: 'abacus'$"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedError, match=r"^device cuda:1 is not available$"):
            choose_device("cuda:1")


def test_workers_are_as_many_as_asked_for() -> None:
    """By default as many as torch would use."""
    assert choose_workers(3).count == 3
    assert choose_workers(None).count == torch.get_num_threads()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_of_a_dtype_that_no_dense_weight_has_are_all_named(
    checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Numbers of eight bits mean nothing without the scales that belong to them."""
    source = shutil.copytree(checkpoint(), tmp_path / "model")
    names = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    weights = load_weights(source)
    save_weights(source, **{name: weights[name].to(dtype) for name in names})
    with pytest.raises(ConfigError) as caught:
        load_model(source, "float32")
    faults = [line for line in str(caught.value).splitlines() if "not a dtype that a dense weight is kept in" in line]
    assert [fault.split()[0] for fault in faults] == list(names)


def test_tied_tensors_that_differ_are_kept_with_a_warning(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The config is trusted, and the user learns the digests of both tensors."""
    source = shutil.copytree(checkpoint(tie_word_embeddings=True), tmp_path / "model")
    weights = load_weights(source)
    save_weights(source, **{"lm_head.weight": weights["model.embed_tokens.weight"] + 1})
    load_dense_model(source, "auto")
    (message,) = caplog.messages
    assert "config.json ties lm_head.weight (sha256 " in message
    assert message.endswith("but they differ; both are kept")


def test_a_quantize_config_of_its_own_says_that_a_checkpoint_is_quantized(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """AutoGPTQ may have left config.json as it was."""
    source = shutil.copytree(checkpoint(), tmp_path / "model")
    (source / "quantize_config.json").write_text('{"bits": 4, "group_size": 32}')
    with pytest.raises(UnsupportedError, match=r"already quantized \(gptq\.int4\)"):
        load_dense_model(source, "auto")
