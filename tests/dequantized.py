"""What quantized checkpoints stand for, read by the letter of the formats and without the package's own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from tests.models import load_weights

__all__ = ["dequantize", "layers_of", "write_dense"]


def write_dense(directory: Path, out: Path) -> Path:
    """A dense checkpoint in float32, with the quantized one's own config.json but for ``quantization_config``."""
    shutil.copytree(directory, out, ignore=shutil.ignore_patterns("*.safetensors*", "quantize_config.json"))
    raw = json.loads((directory / "config.json").read_text())
    tensors = dequantize(load_weights(directory), raw.pop("quantization_config"))
    (out / "config.json").write_text(json.dumps(raw))
    save_file({name: tensor.float() for name, tensor in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    return out


def layers_of(directory: Path) -> list[str]:
    """The quantized layers."""
    names = load_weights(directory)
    return sorted(name.rpartition(".")[0] for name in names if name.endswith((".qweight", ".SCB")))


def dequantize(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, Tensor]:
    """The weights [N, K] of all layers, quantized or not."""
    if config["quant_method"] == "gptq":
        return _gptq(tensors, int(str(config["bits"])), config["checkpoint_format"] == "gptq")
    dense = dict(tensors)
    for layer in [name.removesuffix(".SCB") for name in tensors if name.endswith(".SCB")]:
        scale = dense.pop(f"{layer}.SCB") / 127
        assert dense.pop(f"{layer}.weight_format").item() == 0
        dense[f"{layer}.weight"] = tensors[f"{layer}.weight"].float() * scale[:, None]
    return dense


def _gptq(tensors: Mapping[str, Tensor], bits: int, zeros_less_one: bool) -> dict[str, Tensor]:
    dense = dict(tensors)
    for layer in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        words, zero_words, scales, group = (
            dense.pop(f"{layer}.{part}").numpy() for part in ("qweight", "qzeros", "scales", "g_idx")
        )
        codes = _codes(words.T, bits)  # [N, K]
        zeros = _codes(zero_words, bits).T + zeros_less_one  # [N, G]
        assert codes.shape[1] == len(group)
        weight = (codes - zeros[:, group]) * scales.T.astype(np.float32)[:, group]
        dense[f"{layer}.weight"] = torch.from_numpy(weight.astype(np.float32))
    return dense


def _codes(words: NDArray[np.int32], bits: int) -> NDArray[np.int64]:
    """Each row of 32-bit words as a stream of bits, lowest first, cut into codes of ``bits`` bits."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))
