"""Quantized checkpoints made dense again: the weights that the codes stand for, whoever wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM

from llamaconv.errors import NumericalError, UnsupportedError
from llamaconv.tasks.evaluate import EvaluateSettings, evaluate
from tests.conftest import Checkpoint
from tests.dequantized import dequantize
from tests.models import load_weights, save_weights
from tests.quantizers.bnb4_checkpoints import write_bnb4
from tests.sources.torch_files import write_zip
from tests.tasks.conftest import Quantized
from tests.tasks.conversions import PACKED_STATED, lit_llama_dense, same_bits, stored, to
from tests.tasks.runs import write_tokens


def test_a_file_that_is_quantized_in_part_can_be_made_dense_only(lit_llama_codes: Path, tmp_path: Path) -> None:
    """GPTQ's configuration could not say which layers are."""
    tensors = stored(lit_llama_codes)
    layer, hub = "transformer.h.1.mlp.c_proj", "model.layers.1.mlp.down_proj.weight"
    tensors[f"{layer}.weight"] = lit_llama_dense(tensors, 4)[f"{layer}.weight"]
    tensors = {
        name: tensor for name, tensor in tensors.items() if name == f"{layer}.weight" or not name.startswith(layer)
    }
    source = tmp_path / "source"
    source.mkdir()
    write_zip(source / "llama-gptq.4bit.pth", tensors)
    with pytest.raises(UnsupportedError) as caught:
        to("hf", source, tmp_path / "out", **PACKED_STATED)
    assert str(caught.value).splitlines() == [f"{source}: only some layers are quantized:", f"{hub} is dense"]
    dense = to("hf", source, tmp_path / "out", **PACKED_STATED, dequantize=True).out
    assert torch.equal(load_weights(dense)[hub], tensors[f"{layer}.weight"])


@pytest.mark.parametrize("layout", ["hf", "litgpt", "meta", "lit-llama"])
@pytest.mark.parametrize(
    "settings", [{"mode": "gptq.int3"}, {"mode": "gptq.int4", "lm_head": True}, {"mode": "llm.int8"}], ids=str
)
def test_dense_weights_are_those_that_the_codes_stand_for(
    quantized_llama: Quantized, tmp_path: Path, settings: dict[str, Any], layout: str
) -> None:
    """In the dtype that config.json gives, in every layout; nothing says any more that it was quantized."""
    source = quantized_llama(torch.bfloat16, **settings)
    result = to(layout, source, tmp_path / "out", dequantize=True, verify=True)
    raw = json.loads((source / "config.json").read_text())
    expected = {name: t.bfloat16() for name, t in dequantize(load_weights(source), raw["quantization_config"]).items()}
    back = (
        result.out
        if layout == "hf"
        else to("hf", result.out, tmp_path / "back", **PACKED_STATED if layout == "lit-llama" else {}).out
    )
    assert same_bits(load_weights(back), expected)
    for place in {result.out, back} - ({result.out} if layout in ("meta", "lit-llama") else set()):
        assert "quantization_config" not in json.loads((place / "config.json").read_text())
        assert not (place / "quantize_config.json").exists()


def test_dense_weights_of_nf4_are_the_librarys(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Bit for bit, in config.json's dtype."""
    source = write_bnb4(checkpoint("qwen2", dtype=torch.bfloat16), tmp_path / "source", nested=True)
    out = to("litgpt", source, tmp_path / "out", dequantize=True, verify=True).out
    found = load_weights(to("hf", out, tmp_path / "back").out)
    model = AutoModelForCausalLM.from_pretrained(source)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(layers) == 21
    for name, module in layers.items():
        theirs = dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert theirs.dtype == torch.bfloat16
        assert torch.equal(found[f"{name}.weight"], theirs)


@pytest.mark.parametrize("layout", ["hf", "litgpt"])
def test_dense_weights_of_lit_llamas_codes(lit_llama_codes: Path, tmp_path: Path, layout: str) -> None:
    """The letter of the format, in the dtype of what the file holds dense."""
    dense = lit_llama_dense(stored(lit_llama_codes), 4)
    result = to(layout, lit_llama_codes, tmp_path / "out", dequantize=True, **PACKED_STATED)
    back = load_weights(to("hf", result.out, tmp_path / "back").out)
    assert torch.equal(back["lm_head.weight"], dense["lm_head.weight"][:288])
    assert torch.equal(back["model.layers.2.mlp.down_proj.weight"], dense["transformer.h.2.mlp.c_proj.weight"])
    assert torch.equal(back["model.embed_tokens.weight"], dense["transformer.wte.weight"][:288])


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_dense_weights_are_judged_as_the_codes_are(quantized_llama: Quantized, tmp_path: Path, mode: str) -> None:
    """No KL between the two."""
    source = quantized_llama(mode=mode)
    dense = to("hf", source, tmp_path / "dense", dequantize=True).out
    tokens = write_tokens(tmp_path / "tokens.npy", 2, 32)
    found = evaluate(dense, EvaluateSettings(text=str(tokens), against=source, threads=1))
    assert (found.kl, found.top1) == (0.0, 1.0)


def test_dense_weights_in_another_dtype_are_rounded_once(quantized_llama: Quantized, tmp_path: Path) -> None:
    """float32 holds what the codes stand for, whatever dtype config.json gives."""
    source = quantized_llama(torch.bfloat16, mode="llm.int8")
    out = to("hf", source, tmp_path / "out", dequantize=True, dtype="float32", verify=True).out
    expected = dequantize(load_weights(source), json.loads((source / "config.json").read_text())["quantization_config"])
    assert same_bits(load_weights(out), {name: tensor.float() for name, tensor in expected.items()})


def test_dense_weights_that_overflow_are_counted(quantized_llama: Quantized, tmp_path: Path) -> None:
    """As those of any other tensor."""
    layer = "model.layers.1.mlp.up_proj"
    source = shutil.copytree(quantized_llama(mode="llm.int8"), tmp_path / "source")
    save_weights(source, **{f"{layer}.SCB": torch.full((256,), 1e9)})
    with pytest.raises(NumericalError) as caught:
        to("hf", source, tmp_path / "out", dequantize=True, dtype="float16")
    count = int((load_weights(source)[f"{layer}.weight"] != 0).sum())
    assert str(caught.value) == f"{layer}.weight: of 24,576 values {count:,} overflow in float16"
    allowed = to("hf", source, tmp_path / "out", dequantize=True, dtype="float16", allow_overflow=True)
    assert allowed.losses == (str(caught.value),)
