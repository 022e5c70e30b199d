"""Started by the fixture packed_by_gptqmodel: packs weights with GPTQModel, in v2 and then in v1, and dequantizes them.

Usage: IN.safetensors OUT.safetensors; the tensors in IN are ``KIND.BITS.(weight|scales|zeros|g_idx)``.
"""

from __future__ import annotations

import sys

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # type: ignore[import-untyped]
from gptqmodel.quantization import QuantizeConfig  # type: ignore[import-untyped]
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TENSORS = ("qweight", "qzeros", "scales", "g_idx")


def pack(method: str, bits: int, weight: Tensor, scales: Tensor, zeros: Tensor, g_idx: Tensor) -> TorchLinear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False)
    linear.weight.data = weight
    packed = TorchLinear(
        bits=bits, group_size=32, sym=False, desc_act=True, in_features=columns, out_features=rows, bias=False
    )
    getattr(packed, method)(linear, scales, zeros, g_idx)
    return packed


def main(source: str, out: str) -> None:
    parts, stored = load_file(source), {}
    for kind in {name.partition(".")[0] for name in parts}:
        for method in ("pack_block", "pack_original"):
            for bits in (2, 3, 4, 8):
                arguments = (parts[f"{kind}.{bits}.{name}"] for name in ("weight", "scales", "zeros", "g_idx"))
                packed = pack(method, bits, *arguments)
                for name in TENSORS:
                    stored[f"{kind}.{method}.gptq_v2.{bits}.{name}"] = getattr(packed, name).clone()
                with torch.inference_mode():
                    packed.post_init()
                    stored[f"{kind}.{method}.{bits}.weight"] = packed.dequantize_weight().T.contiguous()
                    convert_gptq_v2_to_v1_format_module(packed, QuantizeConfig(bits=bits))
                for name in TENSORS:
                    stored[f"{kind}.{method}.gptq.{bits}.{name}"] = getattr(packed, name).clone()
    save_file(stored, out)


main(*sys.argv[1:])
