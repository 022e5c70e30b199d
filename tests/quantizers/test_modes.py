from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from llamaconv.errors import UnsupportedError, UsageError
from llamaconv.quantizers.base import Dequantizer, Quantizer
from llamaconv.quantizers.bnb4 import Bnb4
from llamaconv.quantizers.col_block import ColBlock
from llamaconv.quantizers.gptq import Gptq
from llamaconv.quantizers.grids import AffineGrid
from llamaconv.quantizers.llm_int8 import LlmInt8
from llamaconv.quantizers.modes import quantizer_for_mode, quantizer_of_checkpoint
from llamaconv.quantizers.names import MODES

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128}


@pytest.mark.parametrize("mode", MODES)
def test_a_quantizer_is_called_as_its_mode(mode: str) -> None:
    """Every mode has a quantizer, which says its name."""
    assert quantizer_for_mode(mode).mode == mode


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_settings_reach_the_gptq_quantizer(bits: int) -> None:
    """By default groups of 128, symmetric, searched scales, three sweeps; each setting changes what it names."""
    assert quantizer_for_mode(f"gptq.int{bits}") == Gptq(AffineGrid(bits, True, "search"), 128, False, 3, "gptq")
    assert quantizer_for_mode(
        f"gptq.int{bits}", group_size=-1, symmetric=False, act_order=True, scales="minmax", sweeps=0
    ) == Gptq(AffineGrid(bits, False, "minmax"), -1, True, 0, "gptq")


def test_the_settings_of_gptq_do_not_concern_llm_int8() -> None:
    """It has none."""
    assert quantizer_for_mode("llm.int8", group_size=64, symmetric=False, act_order=True) == LlmInt8()


@pytest.mark.parametrize("mode", ["gptq.int5", "gptq", "GPTQ.int4", ""])
def test_an_unknown_mode_is_refused(mode: str) -> None:
    """With the list of those there are."""
    with pytest.raises(UsageError) as caught:
        quantizer_for_mode(mode)
    assert caught.value.message == f"unknown mode {mode!r}"
    assert caught.value.hint == "Choose one of gptq.int4, gptq.int8, gptq.int3, gptq.int2, llm.int8."


@pytest.mark.parametrize("size", [0, -2])
@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_a_group_size_that_no_group_can_have_is_refused(mode: str, size: int) -> None:
    """Sizes are positive; -1 stands for the whole row."""
    with pytest.raises(UsageError) as caught:
        quantizer_for_mode(mode, group_size=size)
    assert caught.value.message == f"a group size of {size}"
    assert caught.value.hint == "Give a positive size, or -1 for one group per row."


@pytest.mark.parametrize(
    "quantizer",
    [
        Gptq(AffineGrid(4), 128),
        Gptq(AffineGrid(3, False), 32, act_order=True),
        Gptq(AffineGrid(8), -1, format="gptq_v2"),
        LlmInt8(6.0),
        LlmInt8(4.5),
    ],
    ids=str,
)
def test_the_configuration_names_its_quantizer(quantizer: Quantizer) -> None:
    """What a quantizer writes into config.json gives a quantizer that reads the checkpoint, and writes the same."""
    found = quantizer_of_checkpoint(quantizer.config())
    assert isinstance(found, type(quantizer))
    assert found.config() == quantizer.config()


@pytest.mark.parametrize(
    ("config", "quantizer"),
    [
        (GPTQ, Gptq(AffineGrid(4), 128)),
        ({"quant_method": "gptq", "bits": 2}, Gptq(AffineGrid(2), 128)),
        (GPTQ | {"sym": False, "desc_act": True}, Gptq(AffineGrid(4, False), 128, act_order=True)),
        (GPTQ | {"group_size": -1, "checkpoint_format": "gptq_v2"}, Gptq(AffineGrid(4), -1, format="gptq_v2")),
        (GPTQ | {"dataset": "c4", "tokenizer": None, "use_exllama": True}, Gptq(AffineGrid(4), 128)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, LlmInt8(6.0)),
        ({"quant_method": "bitsandbytes", "_load_in_8bit": True, "llm_int8_threshold": 3}, LlmInt8(3.0)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, Bnb4()),
        ({"quant_method": "bitsandbytes", "_load_in_4bit": True, "_load_in_8bit": False}, Bnb4()),
        ({"load_in_4bit": True, "load_in_8bit": False}, Bnb4()),
        ({"load_in_8bit": True}, LlmInt8(6.0)),
        *(({"quant_method": "lit-llama-gptq", "bits": bits}, ColBlock(bits)) for bits in (2, 4, 8)),
    ],
)
def test_configurations_that_others_write(config: dict[str, Any], quantizer: Dequantizer) -> None:
    """Keys that are absent have the value that readers give them, and those that are not ours are passed over."""
    assert quantizer_of_checkpoint(config) == quantizer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPTQ | {"bits": 5}, "GPTQ with bits=5, group_size=128 and checkpoint_format='gptq'"),
        (GPTQ | {"bits": None}, "GPTQ with bits=None, group_size=128 and checkpoint_format='gptq'"),
        (GPTQ | {"group_size": 0}, "GPTQ with bits=4, group_size=0 and checkpoint_format='gptq'"),
        (GPTQ | {"group_size": None}, "GPTQ with bits=4, group_size=None and checkpoint_format='gptq'"),
        (GPTQ | {"group_size": "64"}, "GPTQ with bits=4, group_size='64' and checkpoint_format='gptq'"),
        (
            GPTQ | {"checkpoint_format": "marlin"},
            "GPTQ with bits=4, group_size=128 and checkpoint_format='marlin'",
        ),
        (
            GPTQ | {"pack_dtype": "int16"},
            "GPTQ with bits=4, group_size=128, packed in 'int16', and checkpoint_format='gptq'",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": False},
            "quantization_config with quant_method='bitsandbytes' cannot be read",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": None},
            "LLM.int8 with llm_int8_threshold=None",
        ),
        ({"quant_method": "lit-llama-gptq"}, "lit-llama's GPTQ with bits=None"),
        ({"quant_method": "lit-llama-gptq", "bits": 3}, "lit-llama's GPTQ with bits=3"),
        ({"quant_method": "lit-llama-gptq", "bits": 0}, "lit-llama's GPTQ with bits=0"),
        ({"quant_method": "lit-llama-gptq", "bits": [4]}, "lit-llama's GPTQ with bits=[4]"),
        ({"quant_method": "lit-llama-gptq", "bits": 4.0}, "lit-llama's GPTQ with bits=4.0"),
        ({"quant_method": "awq", "bits": 4}, "quantization_config with quant_method='awq' cannot be read"),
        ({}, "quantization_config with quant_method=None cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(config: dict[str, Any], message: str) -> None:
    """Method, width, group size or format, with the value that was found."""
    with pytest.raises(UnsupportedError) as caught:
        quantizer_of_checkpoint(config)
    assert caught.value.message == message
    assert caught.value.hint


def test_reading_what_is_no_gptq_does_without_its_kernels() -> None:
    """Compiling kernels takes long, so that numba is imported for GPTQ alone."""
    code = (
        "import sys\n"
        "from llamaconv.quantizers.modes import quantizer_of_checkpoint\n"
        "quantizer_of_checkpoint({'load_in_4bit': True})\n"
        "print({'numba', 'transformers', 'bitsandbytes'} & set(sys.modules))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.stdout == "set()\n", child.stderr
