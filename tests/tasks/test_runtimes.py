"""What is said of runtimes that no test here can load an artifact in, and the configuration that they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaconv.plan.selection import Selection, select_layers
from llamaconv.quantizers.modes import quantizer_for_mode
from llamaconv.tasks.loading import LoadedModel, load_model
from llamaconv.tasks.model_directory import quantization_config
from llamaconv.tasks.runtimes import runtimes
from tests.models import write_model

FUSED = "it fuses q, k and v, and gate and up: of each, skip all or none"
WIDE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
SHAPES = "its kernels need outputs in multiples of 64 and inputs in multiples of 128"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """12 blocks, wide enough for vLLM."""
    directory = tmp_path_factory.mktemp("model")
    return load_model(write_model(directory, num_hidden_layers=12, **WIDE), "auto")


def _selection(model: LoadedModel, skip: tuple[str, ...] = (), head: bool = False) -> Selection:
    return select_layers(model.skeleton, model.specs, quantizer_for_mode("gptq.int4"), skip, head)


@pytest.mark.parametrize(
    ("mode", "settings", "skip", "head", "said"),
    [
        ("gptq.int4", {}, (), False, "yes"),
        ("gptq.int8", {"act_order": True, "group_size": -1}, ("*.down_proj",), False, "yes"),
        ("gptq.int4", {}, ("*.gate_proj", "*.up_proj"), False, "yes"),
        ("gptq.int4", {}, ("model.layers.1.self_attn.*",), False, "yes"),
        ("gptq.int3", {}, (), False, "it has no kernel for 3 bits"),
        ("gptq.int4", {"symmetric": False}, (), False, "its kernels take symmetric grids only"),
        ("gptq.int4", {"group_size": 16}, (), False, "its kernels take groups of 32, 64, 128 or -1"),
        ("gptq.int4", {}, (), True, SHAPES),  # 288 tokens
        ("gptq.int4", {}, ("*.q_proj",), False, FUSED),
        ("gptq.int4", {}, ("model.layers.1.mlp.up_proj",), False, FUSED),
    ],
)
def test_vllm(
    model: LoadedModel, mode: str, settings: dict[str, Any], skip: tuple[str, ...], head: bool, said: str
) -> None:
    """What is said of vLLM follows its kernels' limits and the layers it fuses."""
    assert runtimes(quantizer_for_mode(mode, **settings), _selection(model, skip, head), model)["vllm"] == said


def test_vllm_with_few_outputs(tmp_path: Path) -> None:
    """Every layer counts: one with 32 outputs is one too many."""
    narrow = load_model(write_model(tmp_path, **WIDE | {"num_key_value_heads": 1}), "auto")
    assert runtimes(quantizer_for_mode("gptq.int4"), _selection(narrow), narrow)["vllm"] == SHAPES


def _config(model: LoadedModel, selection: Selection, damping: float = 0.01) -> dict[str, Any]:
    settings = {"damping": damping, "version": "1.2"}
    return quantization_config(quantizer_for_mode("gptq.int4"), selection, model.skeleton, settings)


def test_nothing_skipped(model: LoadedModel) -> None:
    """The configuration of a uniformly quantized model lists the layers of a block, and has no exceptions."""
    assert _config(model, _selection(model)) == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "true_sequential": True,
        "static_groups": False,
        "damp_percent": 0.01,
        "lm_head": False,
        "modules_in_block_to_quantize": [
            ["self_attn.q_proj"],
            ["self_attn.k_proj"],
            ["self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj"],
            ["mlp.up_proj"],
            ["mlp.down_proj"],
        ],
        "meta": {"quantizer": ["llamaconv:1.2"]},
    }


def test_skipped_layers_are_named_as_vllm_fuses_them(model: LoadedModel) -> None:
    """Each skipped layer is an exception by its full name; where all parts of a fused layer are, so is that."""
    selection = _selection(model, ("model.layers.1.self_attn.*", "model.layers.11.mlp.up_proj"))
    assert _config(model, selection)["dynamic"] == {
        r"-:^model\.layers\.1\.self_attn\.q_proj$": {},
        r"-:^model\.layers\.1\.self_attn\.k_proj$": {},
        r"-:^model\.layers\.1\.self_attn\.v_proj$": {},
        r"-:^model\.layers\.1\.self_attn\.o_proj$": {},
        r"-:^model\.layers\.11\.mlp\.up_proj$": {},
        r"-:^model\.layers\.1\.self_attn\.qkv_proj$": {},
    }


def test_quantized_head_is_listed(model: LoadedModel) -> None:
    """vLLM takes a head for quantized if the list of layers has it, whatever ``lm_head`` says."""
    config = _config(model, _selection(model, ("*.self_attn.*",), head=True))
    assert config["lm_head"] is True
    assert config["modules_in_block_to_quantize"] == [
        ["mlp.gate_proj"],
        ["mlp.up_proj"],
        ["mlp.down_proj"],
        ["lm_head"],
    ]


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_damping_that_readers_refuse(model: LoadedModel, damping: float) -> None:
    """A damping of 0 or 1, which transformers and AutoGPTQ refuse to read, is left out."""
    assert "damp_percent" not in _config(model, _selection(model), damping)
