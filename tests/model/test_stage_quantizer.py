from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llamaconv.model.workers import Workers
from llamaconv.quantizers.hessian import accumulate, factorize, mirror, relative_error
from llamaconv.quantizers.modes import quantizer_for_mode
from tests.conftest import Checkpoint
from tests.models import load_weights, reference, reference_logits
from tests.tasks.runs import run, write_tokens

STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def inputs_of(model: nn.Module, layer: str, rows: Tensor) -> list[Tensor]:
    """What a layer receives for each row of tokens, from a forward of the whole model."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0]))
    for row in rows:
        reference_logits(model, row)  # type: ignore[arg-type]
    hook.remove()
    return seen


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"act_order": True, "symmetric": False, "damping": 0.05}], ids=str)
def test_each_layer_is_calibrated_on_what_the_quantized_layers_before_it_put_out(
    checkpoint: Checkpoint, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    """Bit for bit what whole forwards of the model give, with every layer before at its quantized weight."""
    tokens = write_tokens(tmp_path / "tokens.npy", 6, 40)
    result = run(checkpoint(family), tmp_path / "out", calibration=tokens, lm_head=True, threads=2, **settings)
    stored, errors = load_weights(result.out), {layer.name: layer.error for layer in result.layers}
    model, rows = reference(checkpoint(family)), torch.from_numpy(np.load(tokens))
    damping = settings.pop("damping", 0.01)
    quantizer = quantizer_for_mode("gptq.int4", group_size=32, **settings)
    stages = [tuple(f"model.layers.{block}.{name}" for name in names) for block in range(3) for names in STAGES]
    with Workers(1) as crew, torch.inference_mode():
        for names in (*stages, ("lm_head",)):
            inputs = inputs_of(model, names[0], rows)
            hessian = torch.zeros(inputs[0].shape[1], inputs[0].shape[1])
            accumulate(hessian, inputs, crew.map)
            mirror(hessian)
            factor = factorize(hessian, damping, settings.get("act_order", False))
            for name in names:
                weight = model.get_parameter(f"{name}.weight")
                quantized = quantizer.quantize(weight.detach(), factor, crew.map)
                for suffix, tensor in quantized.tensors().items():
                    assert torch.equal(stored[f"{name}.{suffix}"], tensor), f"{name}.{suffix}"
                assert errors[name] == relative_error(weight, quantized.dequantize(), hessian, crew.map)
                weight.data = quantized.dequantize()
