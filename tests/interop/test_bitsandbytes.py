"""LLM.int8 artifacts in transformers with bitsandbytes, on the CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.interop.artifacts import Artifact, Case, Workshop, kinds, logits_of, relative_difference
from tests.models import load_weights

pytestmark = pytest.mark.interop

INPUTS_IN_EIGHT_BITS = 5e-2
"""bitsandbytes rounds each layer's inputs to 1/127 of the largest in their row. Of K normal values the largest is
about 3 deviations out, so the rounding is 3 / 127 / sqrt(12) of a deviation, 0.7 %, in every layer; over the layers of
the deepest model here that comes to 3 %. A layer with wrong weights is far beyond: any two are near orthogonal."""
SAME_INPUTS = 3e-3
"""With the same rounded inputs, what is left is one rounding of the output to bfloat16 or float16."""

THRESHOLD = 6.0

CASES = (
    Case("llama, trained", "bundled", "llm.int8"),
    Case("qwen2 with biases, tied head", "qwen2", "llm.int8", config={"tie_word_embeddings": True}),
    Case("qwen3, down_proj skipped", "qwen3", "llm.int8", {"skip": ("*.down_proj",)}),
    Case("mistral, block 1 skipped, head", "mistral", "llm.int8", {"skip": ("model.layers.1.*",), "lm_head": True}),
    Case(
        "skipped in block 1 of 11, float16",
        "llama",
        "llm.int8",
        {"skip": ("model.layers.1.mlp.*",), "dtype": "float16"},
        {"num_hidden_layers": 11},
    ),
)


def _load(artifact: Artifact) -> PreTrainedModel:
    model, found = AutoModelForCausalLM.from_pretrained(artifact.path, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_are_our_bytes(workshop: Workshop, case: Case) -> None:
    """Each quantized layer is a Linear8bitLt with our codes and scales; each skipped one is dense, as we wrote it."""
    from bitsandbytes.nn import Linear8bitLt

    artifact = workshop.make(case)
    assert artifact.claims == {"transformers": "yes"}
    model, stored = _load(artifact), load_weights(artifact.path)
    assert {name for name, module in model.named_modules() if isinstance(module, Linear8bitLt)} == artifact.quantized
    assert kinds(model, artifact.dense) <= {nn.Linear}
    for name in artifact.quantized:
        weight: Any = model.get_submodule(name).weight
        assert weight.dtype == torch.int8
        assert torch.equal(weight.data, stored[f"{name}.weight"])
        assert torch.equal(weight.SCB, stored[f"{name}.SCB"])
    for name in artifact.dense - {"lm_head"}:
        assert torch.equal(model.get_submodule(name).weight, stored[f"{name}.weight"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits(workshop: Workshop, case: Case) -> None:
    """Logits are those of our dequantized model, to the rounding of the inputs."""
    artifact = workshop.make(case)
    logits = logits_of(_load(artifact), artifact.tokens)
    assert relative_difference(logits, artifact.logits) <= INPUTS_IN_EIGHT_BITS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_layer(workshop: Workshop, case: Case) -> None:
    """With the inputs it rounds to, a layer gives what our dequantized weight makes of them."""
    artifact = workshop.make(case)
    model, seen = _load(artifact), dict[str, float]()

    def compare(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        ours = artifact.model.get_submodule(name)
        expected = functional.linear(_rounded(inputs[0]), ours.weight, ours.bias)
        seen[name] = relative_difference(output, expected)

    for name in artifact.quantized:
        model.get_submodule(name).register_forward_hook(partial(compare, name))
    logits_of(model, artifact.tokens)
    assert seen.keys() == artifact.quantized
    assert max(seen.values()) <= SAME_INPUTS


def _rounded(values: Tensor) -> Tensor:
    """Inputs [1, L, K] as LLM.int8 rounds them (arXiv 2208.07339, section 3): not in columns with an outlier."""
    half = values.half().float()
    outliers = half.abs() >= THRESHOLD
    step = half.masked_fill(outliers, 0).abs().amax(-1, keepdim=True) / 127
    columns = outliers.any(dim=1, keepdim=True)
    return torch.where(columns, half, (half / step).round() * step)
