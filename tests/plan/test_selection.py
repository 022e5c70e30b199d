from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from llamaconv.errors import UnsupportedError, UsageError
from llamaconv.model.skeleton import Skeleton
from llamaconv.plan.selection import Selection, select_layers
from llamaconv.quantizers.modes import quantizer_for_mode
from llamaconv.tensors import TensorSpec
from tests.tasks.runs import LAYERS

_LLAMA = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 288,
    "pad_token_id": None,
}


def select(
    skip: tuple[str, ...] = (), head: bool = False, mode: str = "gptq.int4", group_size: int = 32, **changes: Any
) -> Selection:
    raw = AutoConfig.for_model(**({"model_type": "llama", **_LLAMA} | changes)).to_dict()
    skeleton = Skeleton.build(raw, torch.float32)
    parameters = skeleton.model.named_parameters(remove_duplicate=False)
    specs = {name: TensorSpec.of(name, parameter) for name, parameter in parameters}
    return select_layers(skeleton, specs, quantizer_for_mode(mode, group_size=group_size), skip, head)


def test_every_matrix_of_the_blocks_is_chosen() -> None:
    """And no other."""
    assert select() == Selection((LAYERS,) * 3, (), None, 1.0)


def test_patterns_match_full_names() -> None:
    """Several may match one layer; what is left out is listed in the model's order."""
    found = select(("*.1.mlp.*", "*.[gu]*_proj"))
    assert found.blocks[0] == found.blocks[2] == (*LAYERS[:4], "mlp.down_proj")
    assert found.blocks[1] == LAYERS[:4]
    assert found.skipped == tuple(
        f"model.layers.{name}"
        for name in (
            "0.mlp.gate_proj",
            "0.mlp.up_proj",
            "1.mlp.gate_proj",
            "1.mlp.up_proj",
            "1.mlp.down_proj",
            "2.mlp.gate_proj",
            "2.mlp.up_proj",
        )
    )
    whole = 3 * (512 * 96 + 3 * 160 * 96)
    assert found.share == pytest.approx(1 - 7 * 160 * 96 / whole)


@pytest.mark.parametrize("pattern", ["mlp.down_proj", "*.down_proj.weight", "lm_head", "MODEL.LAYERS.0.*", ""])
def test_a_pattern_that_matches_nothing_is_a_usage_error(pattern: str) -> None:
    """All such patterns are named, with an example of one that would match."""
    with pytest.raises(UsageError) as caught:
        select(("*.o_proj", pattern, "*nothing"))
    assert str(caught.value) == f"--skip matches no layer: {', '.join(sorted([pattern, '*nothing']))}"
    assert caught.value.hint == ("Patterns match full names such as model.layers.0.mlp.down_proj: try '*.down_proj'.")
    assert caught.value.exit_code == 2


def test_something_must_be_left_to_quantize() -> None:
    """Skipping everything is not what anybody wants."""
    with pytest.raises(UsageError, match=r"^--skip leaves no layer to quantize$"):
        select(("*",))


def test_all_widths_that_do_not_fit_are_listed() -> None:
    """Groups that do not divide the inputs, outputs and inputs that are no multiples of 32; each layer by name."""
    shape = {"hidden_size": 120, "intermediate_size": 150, "head_dim": 20, "num_hidden_layers": 2}
    with pytest.raises(UnsupportedError) as caught:
        select(("*.1.*",), group_size=50, **shape)
    assert str(caught.value).splitlines() == [
        "model.layers.0.self_attn.q_proj.weight [120, 120]: 120 outputs are not a multiple of 32",
        "model.layers.0.self_attn.q_proj.weight [120, 120]: 120 inputs are not a multiple of 32",
        "model.layers.0.self_attn.q_proj.weight [120, 120]: groups of 50 do not divide 120 inputs",
        "model.layers.0.self_attn.k_proj.weight [40, 120]: 40 outputs are not a multiple of 32",
        "model.layers.0.self_attn.k_proj.weight [40, 120]: 120 inputs are not a multiple of 32",
        "model.layers.0.self_attn.k_proj.weight [40, 120]: groups of 50 do not divide 120 inputs",
        "model.layers.0.self_attn.v_proj.weight [40, 120]: 40 outputs are not a multiple of 32",
        "model.layers.0.self_attn.v_proj.weight [40, 120]: 120 inputs are not a multiple of 32",
        "model.layers.0.self_attn.v_proj.weight [40, 120]: groups of 50 do not divide 120 inputs",
        "model.layers.0.self_attn.o_proj.weight [120, 120]: 120 outputs are not a multiple of 32",
        "model.layers.0.self_attn.o_proj.weight [120, 120]: 120 inputs are not a multiple of 32",
        "model.layers.0.self_attn.o_proj.weight [120, 120]: groups of 50 do not divide 120 inputs",
        "model.layers.0.mlp.gate_proj.weight [150, 120]: 150 outputs are not a multiple of 32",
        "model.layers.0.mlp.gate_proj.weight [150, 120]: 120 inputs are not a multiple of 32",
        "model.layers.0.mlp.gate_proj.weight [150, 120]: groups of 50 do not divide 120 inputs",
        "model.layers.0.mlp.up_proj.weight [150, 120]: 150 outputs are not a multiple of 32",
        "model.layers.0.mlp.up_proj.weight [150, 120]: 120 inputs are not a multiple of 32",
        "model.layers.0.mlp.up_proj.weight [150, 120]: groups of 50 do not divide 120 inputs",
        "model.layers.0.mlp.down_proj.weight [120, 150]: 120 outputs are not a multiple of 32",
        "model.layers.0.mlp.down_proj.weight [120, 150]: 150 inputs are not a multiple of 32",
    ]
    assert caught.value.hint == "Leave these layers dense with --skip, or choose another --group-size."


def test_llm_int8_takes_any_width() -> None:
    """Its codes are bytes, and its scale is one per row."""
    shape = {"hidden_size": 120, "intermediate_size": 150, "head_dim": 20}
    assert select(mode="llm.int8", group_size=50, **shape).share == 1.0


def test_matrices_that_are_no_linear_layer_s_must_be_skipped() -> None:
    """GPT-2 keeps its weights transposed, in a class of its own."""
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    with pytest.raises(UnsupportedError) as caught:
        select(("*.attn.*",), model_type="gpt2", num_hidden_layers=2, **tokens)
    assert str(caught.value).splitlines() == [
        f"transformer.h.{block}.mlp.{name}.weight {shape}: not the weight of a linear layer"
        for block in range(2)
        for name, shape in (("c_fc", [96, 384]), ("c_proj", [384, 96]))
    ]


@pytest.mark.skipif(transformers.__version__ < "5", reason="4.57 has a linear layer for each expert")
def test_experts_held_in_one_tensor_must_be_skipped() -> None:
    """A mixture of experts has weights of three dimensions."""
    with pytest.raises(UnsupportedError) as caught:
        select(model_type="mixtral", num_local_experts=4, num_hidden_layers=1)
    lines = str(caught.value).splitlines()
    assert all(line.endswith(": not the weight of a linear layer") for line in lines)
    assert any(".experts." in line for line in lines)


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_the_head_is_chosen_on_request(mode: str) -> None:
    """It is no part of the blocks, and of their share."""
    assert select(head=True, mode=mode) == Selection((LAYERS,) * 3, (), "lm_head", 1.0)


def test_a_head_that_cannot_be_quantized_is_refused() -> None:
    """Tied to the embedding, or of a size that does not fit; beside the faults of the layers."""
    with pytest.raises(UnsupportedError) as caught:
        select(head=True, tie_word_embeddings=True)
    assert str(caught.value) == "the head's weight is tied to the embedding: --lm-head would quantize both"
    with pytest.raises(UnsupportedError) as caught:
        select(("*.[kv]_proj",), head=True, vocab_size=300, intermediate_size=150)
    lines = str(caught.value).splitlines()
    assert lines[-1] == "lm_head.weight [300, 96]: 300 outputs are not a multiple of 32"
    assert len(lines) == 3 * 4 + 1
