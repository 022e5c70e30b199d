from __future__ import annotations

import pytest
import torch
from bitsandbytes.nn.modules import Int8Params, Linear8bitLt
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from llamaconv.errors import NumericalError, UnsupportedError
from llamaconv.quantizers.llm_int8 import Int8Weight, LlmInt8
from llamaconv.tensors import TensorSpec
from tests.quantizers.problems import serial, weight


def saved_by_bitsandbytes(w: Tensor) -> dict[str, Tensor]:
    """The state of the layer that transformers puts in a linear layer's place and saves."""
    layer = Linear8bitLt(w.shape[1], w.shape[0], bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = Int8Params(w.clone(), requires_grad=False, has_fp16_weights=False)
    layer.cpu()  # where it is quantized
    return {name: tensor.contiguous() for name, tensor in layer.state_dict().items()}


@settings(deadline=None)  # the first example imports bitsandbytes' kernels
@given(
    st.integers(1, 70),
    st.integers(1, 50),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1e-6, 1e-2, 1.0, 1e3]),
    st.integers(0, 1000),
)
def test_the_bytes_are_those_of_bitsandbytes(
    rows: int, columns: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    """Whatever dtype the source has; a row of zeros among them."""
    w = (size * weight(seed, rows, columns)).to(dtype)
    w[seed % rows] = 0
    ours = LlmInt8().quantize(w.float(), None, serial).tensors()
    assert save(ours) == save(saved_by_bitsandbytes(w))


def test_literal_codes() -> None:
    """127 stands for the row's largest magnitude, which float16 has rounded; the other codes are the nearest."""
    w = torch.tensor([[1.27, -0.01, 0.5], [-254.0, 2.0, 127.0], [0.0, 0.0, 0.0], [1.0, 0.25, -0.1]])
    quantized = LlmInt8().quantize(w, None, serial)
    assert quantized.codes.tolist() == [[127, -1, 50], [-127, 1, 64], [0, 0, 0], [127, 32, -13]]
    assert quantized.absmax.tolist() == [1.26953125, 254.0, 0.0, 1.0]
    tensors = quantized.tensors()
    assert list(tensors) == ["weight", "SCB", "weight_format"]
    assert (tensors["weight"].dtype, tensors["SCB"].dtype) == (torch.int8, torch.float32)
    assert (tensors["weight_format"].dtype, tensors["weight_format"].item()) == (torch.uint8, 0)


def test_a_weight_is_its_code_times_the_rows_maximum_over_127() -> None:
    """To within float32."""
    codes = torch.tensor([[127, -127, 0], [1, 64, -13]], dtype=torch.int8)
    absmax = torch.tensor([0.3, 5.0])
    dequantized = Int8Weight(codes, absmax).dequantize()
    assert dequantized.dtype == torch.float32
    exact = codes.double() * absmax.double()[:, None] / 127
    torch.testing.assert_close(dequantized.double(), exact, rtol=2e-7, atol=0)


def test_weights_are_within_half_a_code_of_themselves() -> None:
    """Beside what float16 has already lost."""
    w = weight(1, 40, 56)
    quantized = LlmInt8().quantize(w, None, serial)
    off = (quantized.dequantize() - w.half().float()).abs()
    assert bool((off <= quantized.absmax[:, None] / 127 * 0.5001).all())


@pytest.mark.parametrize("value", [65520.0, -1e9])
def test_a_weight_that_overflows_float16_is_refused(value: float) -> None:
    """Bitsandbytes would store the row as zeros under an infinite maximum."""
    w = weight(2, 5, 7)
    w[3, 4] = value
    with pytest.raises(NumericalError) as caught:
        LlmInt8().quantize(w, None, serial)
    assert caught.value.message == "a weight overflows float16, in which bitsandbytes computes LLM.int8"
    assert caught.value.hint == "Leave the layer out with --skip."
    w[3, 4] = 65519.0
    assert LlmInt8().quantize(w, None, serial).absmax[3] == 65504.0


@pytest.mark.parametrize("form", [1, 3])
def test_codes_laid_out_for_a_gpu_are_refused(form: int) -> None:
    """Only row-major codes can be read, which is what is meant where no format is named."""
    tensors = LlmInt8().quantize(weight(3, 4, 6), None, serial).tensors()
    tensors["weight_format"].fill_(form)
    with pytest.raises(UnsupportedError) as caught:
        LlmInt8().read(tensors)
    assert caught.value.message == f"weight_format {form} is not row-major"
    del tensors["weight_format"]
    assert torch.equal(LlmInt8().read(tensors).codes, tensors["weight"])


def test_any_shape_will_do() -> None:
    """Rows and columns need not be multiples of anything."""
    assert LlmInt8().faults(TensorSpec("a.weight", (7, 5), torch.float16)) == []


def test_the_configuration_that_is_written() -> None:
    """The keys that transformers writes, with its default threshold."""
    assert LlmInt8().config() == {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "load_in_4bit": False,
        "_load_in_8bit": True,
        "_load_in_4bit": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }
