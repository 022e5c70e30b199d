"""Quantized checkpoints converted as they are, where the target's loader takes them, and refused where not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaconv.errors import ConfigError, UnsupportedError, UsageError
from tests.conftest import Checkpoint
from tests.models import load_weights, patch_config, save_weights
from tests.sources.torch_files import write_zip
from tests.tasks.conftest import Quantized
from tests.tasks.conversions import PACKED, PACKED_STATED, WHOLE, lit_llama_dense, same_bits, stored, to
from tests.tasks.runs import run

LOADED = {
    "4 bits": {"mode": "gptq.int4"},
    "8 bits": {"mode": "gptq.int8"},
    "4 bits, asymmetric": {"mode": "gptq.int4", "symmetric": False},
    "8 bits, asymmetric, act-order": {"mode": "gptq.int8", "symmetric": False, "act_order": True},
}
COMMAND = "`llamaconv quantize --mode gptq.int4 --group-size -1 --lm-head --layout lit-llama`"


@pytest.mark.parametrize("case", LOADED)
def test_gptq_there_and_back(quantized_llama: Quantized, tmp_path: Path, case: str) -> None:
    """Into lit-llama's file and out of it again: every tensor bit for bit, and a configuration that others read."""
    source = quantized_llama(**WHOLE, **LOADED[case])
    there = to("lit-llama", source, tmp_path / "there", verify=True)
    bits = int(case[0])
    assert there.files == (f"tiny/llama-gptq.{bits}bit.pth",)
    assert there.logits_difference == 0
    back = to("hf", there.out, tmp_path / "back", **PACKED_STATED, verify=True)
    assert same_bits(load_weights(back.out), load_weights(source))
    written, config = (json.loads((back.out / name).read_text()) for name in ("quantize_config.json", "config.json"))
    assert config["quantization_config"] == written
    before = json.loads((source / "quantize_config.json").read_text())
    told = ("bits", "group_size", "sym", "quant_method", "checkpoint_format", "lm_head", "true_sequential")
    assert {key: written[key] for key in told} == {key: before[key] for key in told}
    assert sorted(written["modules_in_block_to_quantize"]) == sorted(before["modules_in_block_to_quantize"])


def test_its_file_holds_what_its_loader_takes(quantized_llama: Quantized, lit_llama_codes: Path) -> None:
    """Codes in bytes, one scale and one zero point for a row, head and fused attention included, padding of zeros."""
    tensors = stored(lit_llama_codes)
    shapes = {
        name.partition(".0.")[2] or name: tensors[name] for name in tensors if ".1." not in name and ".2." not in name
    }
    assert {name: (list(tensor.shape), tensor.dtype) for name, tensor in shapes.items() if "c_attn" in name} == {
        "attn.c_attn.quant_weight": ([288, 48], torch.uint8),
        "attn.c_attn.scales": ([288, 1], torch.float32),
        "attn.c_attn.zeros": ([288, 1], torch.float32),
    }
    assert tensors["lm_head.quant_weight"].shape == (320, 48)
    dense = lit_llama_dense(tensors, 4)
    assert not dense["lm_head.weight"][288:].any()
    expected = stored(
        to(
            "lit-llama", quantized_llama(**WHOLE), lit_llama_codes.parent / "dense", dequantize=True, dtype="float32"
        ).out
    )
    assert same_bits(dense, expected)


def test_files_of_its_own_quantizer_are_read(lit_llama_codes: Path, quantized_llama: Quantized, tmp_path: Path) -> None:
    """With codes in transposed memory, scales and zero points in the weight's dtype."""
    tensors = stored(lit_llama_codes)
    for name, tensor in tensors.items():
        if name.endswith("quant_weight"):
            tensors[name] = tensor.T.contiguous().T
        elif name.endswith((".scales", ".zeros")):
            tensors[name] = tensor.half()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_zip(theirs / "llama-gptq.4bit.pth", tensors)
    back = to("hf", theirs, tmp_path / "back", **PACKED_STATED).out
    assert same_bits(load_weights(back), load_weights(quantized_llama(**WHOLE)))


def test_zero_points_of_zero_take_gptqs_second_format(lit_llama_codes: Path, tmp_path: Path) -> None:
    """The first stores them less one; back they are the same, and the weights are no more called symmetric."""
    tensors = stored(lit_llama_codes)
    tensors["transformer.h.1.attn.c_attn.zeros"][5] = 0
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_zip(theirs / "llama-gptq.4bit.pth", tensors)
    hub = to("hf", theirs, tmp_path / "hub", **PACKED_STATED, verify=True)
    told = json.loads((hub.out / "quantize_config.json").read_text())
    assert (told["checkpoint_format"], told["sym"]) == ("gptq_v2", False)
    assert same_bits(stored(to("lit-llama", hub.out, tmp_path / "back").out), tensors)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (
            {"mode": "gptq.int3"},
            [
                "codes of 3 bits; it loads 4 and 8",
                "up to 8 groups of columns in a row; it loads one",
                "lm_head.weight is dense; it loads a quantized one",
            ],
        ),
        (
            {"mode": "gptq.int4", "act_order": True, "lm_head": True},
            ["up to 8 groups of columns in a row; it loads one"],
        ),
        (
            {"mode": "gptq.int8", "group_size": -1, "skip": ("*.1.mlp.up_proj",)},
            [
                "lm_head.weight is dense; it loads a quantized one",
                "model.layers.1.mlp.up_proj.weight is dense; it loads a quantized one",
            ],
        ),
        ({"mode": "llm.int8"}, ["quantized by bitsandbytes; it loads GPTQ"]),
    ],
    ids=str,
)
def test_what_its_loader_does_not_take_is_refused(
    quantized_llama: Quantized, tmp_path: Path, settings: dict[str, Any], facts: list[str]
) -> None:
    """All facts in one error, with the command that makes what it takes; nothing is written."""
    with pytest.raises(UnsupportedError) as caught:
        to("lit-llama", quantized_llama(**settings), tmp_path / "out")
    assert str(caught.value).splitlines() == [
        "The layout lit-llama does not hold weights that are quantized as these are:",
        *facts,
    ]
    assert caught.value.hint is not None
    assert COMMAND in caught.value.hint
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_tied_head_has_no_codes_of_its_own(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Which its loader needs; the dense weights it takes."""
    source = run(checkpoint(**PACKED, tie_word_embeddings=True), tmp_path / "source", group_size=-1).out
    with pytest.raises(UnsupportedError) as caught:
        to("lit-llama", source, tmp_path / "out")
    assert str(caught.value).splitlines()[1:] == [
        "lm_head.weight is tied to the embedding; it loads a quantized head of its own"
    ]
    assert to("lit-llama", source, tmp_path / "out", dequantize=True, verify=True).logits_difference == 0


@pytest.mark.parametrize("layout", ["litgpt", "meta"])
def test_layouts_of_dense_weights_take_none_else(
    quantized_llama: Quantized, lit_llama_codes: Path, tmp_path: Path, layout: str
) -> None:
    """From wherever it comes."""
    for source, stated in ((quantized_llama(**WHOLE), {}), (lit_llama_codes, PACKED_STATED)):
        with pytest.raises(
            UnsupportedError, match=r"^The layout .* quantized as these are:\nit has dense weights only$"
        ):
            to(layout, source, tmp_path / "out", **stated)
    with pytest.raises(UnsupportedError, match=r"\nthey are in its own format already: copy the folder$"):
        to("lit-llama", lit_llama_codes, tmp_path / "out", **PACKED_STATED)
    assert list(tmp_path.iterdir()) == []


def test_scales_that_gptq_cannot_hold_are_refused(lit_llama_codes: Path, tmp_path: Path) -> None:
    """Its float16 is not lit-llama's float32; the layer is named, and nothing is published."""
    tensors = stored(lit_llama_codes)
    tensors["transformer.h.2.mlp.c_fc1.scales"] *= 1.0001
    source = tmp_path / "source"
    source.mkdir()
    write_zip(source / "llama-gptq.4bit.pth", tensors)
    with pytest.raises(UnsupportedError, match=r"^transformer\.h\.2\.mlp\.c_fc1: .* scales are not exact in float16$"):
        to("hf", source, tmp_path / "out", **PACKED_STATED)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["hf", "lit-llama"])
def test_what_stays_quantized_is_not_cast(quantized_llama: Quantized, tmp_path: Path, layout: str) -> None:
    """Scales in another dtype would be another format."""
    with pytest.raises(UsageError) as caught:
        to(layout, quantized_llama(**WHOLE), tmp_path / "out", dtype="bfloat16")
    assert str(caught.value) == (
        "--dtype bfloat16: the checkpoint is quantized, and what it stores has the dtypes of its format."
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("mode", ["gptq.int4", "gptq.int3", "llm.int8"])
def test_within_hugging_faces_layout_it_is_copied(quantized_llama: Quantized, tmp_path: Path, mode: str) -> None:
    """Every tensor and every description as it is, in other shards too."""
    source = quantized_llama(mode=mode)
    result = to("hf", source, tmp_path / "out", max_shard_size=100_000, verify=True)
    assert len(result.files) > 3
    assert same_bits(load_weights(result.out), load_weights(source))
    names = ["config.json", *(["quantize_config.json"] if mode != "llm.int8" else [])]
    assert all((result.out / name).read_bytes() == (source / name).read_bytes() for name in names)
    assert (result.out / "quantize_config.json").exists() == (mode != "llm.int8")


def test_codes_of_several_widths_are_copied_and_nothing_else(quantized_llama: Quantized, tmp_path: Path) -> None:
    """As GPTQModel's ``dynamic`` describes them; without it the widths are a disagreement."""
    source = shutil.copytree(quantized_llama(mode="gptq.int4"), tmp_path / "source")
    eight = load_weights(quantized_llama(mode="gptq.int8"))
    save_weights(source, **{name: tensor for name, tensor in eight.items() if ".1.mlp.up_proj." in name})
    with pytest.raises(
        ConfigError, match=r"\nmodel\.layers\.1\.mlp\.up_proj: codes of 8 bits in the checkpoint, of 4 by"
    ):
        to("hf", source, tmp_path / "out")
    told = json.loads((source / "config.json").read_text())["quantization_config"]
    patch_config(source, quantization_config=told | {"dynamic": {r"+:.*\.1\.mlp\.up_proj": {"bits": 8}}})
    assert same_bits(load_weights(to("hf", source, tmp_path / "out").out), load_weights(source))
    with pytest.raises(UnsupportedError) as caught:
        to("hf", source, tmp_path / "dense", dequantize=True)
    assert str(caught.value) == f"{source}: layers with codes of 8 bits beside others of 4 cannot be read"


def test_a_method_that_nobody_here_reads_stays_as_it_is(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Not into another layout, and not dense."""
    source = patch_config(
        shutil.copytree(checkpoint(**PACKED), tmp_path / "source"), quantization_config={"quant_method": "fp8"}
    )
    with pytest.raises(UnsupportedError, match=r"^quantization_config with quant_method='fp8' cannot be read$"):
        to("hf", source, tmp_path / "out", dequantize=True)
    with pytest.raises(UnsupportedError, match=r"\nquantized by fp8; it loads GPTQ$"):
        to("lit-llama", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
