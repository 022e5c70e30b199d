"""GPTQ artifacts in GPTQModel, and in transformers with optimum and GPTQModel's kernels, on the CPU."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPTQConfig

from tests.interop.artifacts import Artifact, Case, Workshop, kinds, logits_of, plainly, relative_difference

pytestmark = pytest.mark.interop

RUNTIMES = ("gptqmodel", "transformers")
CLOSE = 1e-2
"""GPTQModel's int4 kernel for the CPU multiplies in bfloat16; the others stay below 3e-3."""

_OTHER_TOOLS = {"gptqmodel": "it takes asymmetric checkpoints in this format from no other tool"}
_HEAD = {"transformers": "it cannot load a quantized lm_head"}
_SOME_BLOCKS = {"transformers": "it cannot skip a layer in some blocks only"}


def _both(reason: str) -> dict[str, str]:
    return dict.fromkeys(RUNTIMES, reason)


def _groups_of(columns: int) -> dict[str, str]:
    return _both(f"on a CPU, its default kernel fails on groups of {columns}: give it backend='gptq_torch'")


PER_ROW = Case("one group per row", settings={"group_size": -1}, refused=_groups_of(384))
SMALL_GROUPS = Case("groups of 16", settings={"group_size": 16}, refused=_groups_of(16))

CASES = (
    Case("4 bits", "bundled"),
    Case("8 bits", "bundled", "gptq.int8"),
    Case("3 bits", "bundled", "gptq.int3"),
    Case("2 bits", "bundled", "gptq.int2"),
    Case("qwen2 with biases", "qwen2"),
    Case("qwen3", "qwen3", settings={"group_size": 64}),
    Case("mistral, act-order", "mistral", settings={"act_order": True, "group_size": 32}),
    Case("8 bits, act-order, one group per row", mode="gptq.int8", settings={"act_order": True, "group_size": -1}),
    Case("3 bits, act-order", mode="gptq.int3", settings={"act_order": True}),
    Case("groups of 256", settings={"group_size": 256}, config={"hidden_size": 256, "intermediate_size": 512}),
    Case("many shards, no damping", settings={"max_shard_size": 300_000, "damping": 0.0}),
    Case("tied head, float16", "qwen2", settings={"dtype": "float16"}, config={"tie_word_embeddings": True}),
    Case("down_proj skipped", "mistral", settings={"skip": ("*.down_proj",)}),
    Case("q_proj skipped, 8 bits", "qwen2", "gptq.int8", {"skip": ("*.q_proj",)}),
    Case(
        "one group per row of few columns",
        settings={"group_size": -1},
        config={"intermediate_size": 256, "num_attention_heads": 4},
    ),
    Case("asymmetric", settings={"symmetric": False}, refused=_OTHER_TOOLS),
    Case(
        "asymmetric, 8 bits, act-order",
        mode="gptq.int8",
        settings={"symmetric": False, "act_order": True},
        refused=_OTHER_TOOLS,
    ),
    Case("asymmetric, 3 bits", mode="gptq.int3", settings={"symmetric": False, "group_size": 32}, refused=_OTHER_TOOLS),
    Case("asymmetric, 2 bits", mode="gptq.int2", settings={"symmetric": False, "group_size": 32}, refused=_OTHER_TOOLS),
    Case("head", settings={"lm_head": True}, refused=_HEAD),
    Case("head, 8 bits", "qwen3", "gptq.int8", {"lm_head": True}, refused=_HEAD),
    Case(
        "skipped in some blocks",
        "mistral",
        settings={"skip": ("model.layers.1.mlp.*", "model.layers.0.self_attn.[qkv]_proj", "model.layers.2.*.o_proj")},
        refused=_SOME_BLOCKS,
    ),
    Case(
        "block 1 of 11 skipped",
        settings={"skip": ("model.layers.1.*",), "group_size": 32},
        config={"num_hidden_layers": 11},
        refused=_SOME_BLOCKS,
    ),
    Case(
        "groups of 96",
        settings={"group_size": 96},
        config={"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 6},
        refused=_both("its kernels take no groups of 96"),
    ),
    PER_ROW,
    SMALL_GROUPS,
)


@pytest.fixture(scope="session")
def gptqmodel() -> ModuleType:
    """GPTQModel; where it is missing, these tests fail. What importing it does to the process is undone."""
    environment, root = dict(os.environ), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return importlib.import_module("gptqmodel")
    finally:
        os.environ.clear()
        os.environ.update(environment)
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture(autouse=True)
def _plainly() -> Iterator[None]:
    with plainly():
        yield


def _load(gptqmodel: ModuleType, runtime: str, artifact: Artifact, **settings: Any) -> nn.Module:
    if runtime == "transformers":
        return AutoModelForCausalLM.from_pretrained(artifact.path, **settings)
    model: nn.Module = gptqmodel.GPTQModel.load(str(artifact.path), device="cpu", **settings).model
    return model


def _is_quantized(module: nn.Module) -> bool:
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    return isinstance(module, BaseQuantLinear)


def _assert_loads(model: nn.Module, artifact: Artifact) -> None:
    """Quantized where we quantized, dense elsewhere, and our logits."""
    assert {name for name, module in model.named_modules() if _is_quantized(module)} == artifact.quantized
    assert kinds(model, artifact.dense) <= {nn.Linear}
    assert relative_difference(logits_of(model, artifact.tokens), artifact.logits) <= CLOSE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_claims_are_what_loads(gptqmodel: ModuleType, workshop: Workshop, case: Case) -> None:
    """What is claimed loads and gives our logits; what is not, with its reason, fails or gives others."""
    artifact = workshop.make(case)
    for runtime in RUNTIMES:
        assert artifact.claims[runtime] == case.refused.get(runtime, "yes")
        if runtime not in case.refused:
            _assert_loads(_load(gptqmodel, runtime, artifact, dtype=torch.float16), artifact)
            continue
        try:
            logits = logits_of(_load(gptqmodel, runtime, artifact, dtype=torch.float16), artifact.tokens)
        except (ValueError, RuntimeError, IndexError, NotImplementedError):
            continue
        assert not relative_difference(logits, artifact.logits) <= 10 * CLOSE


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_defaults(gptqmodel: ModuleType, workshop: Workshop, runtime: str) -> None:
    """Loaded with no settings at all, the trained model gives our logits."""
    artifact = workshop.make(CASES[0])
    _assert_loads(_load(gptqmodel, runtime, artifact), artifact)


# transformers announces that the checkpoint's quantization_config stands, but for what was passed
_ANNOUNCED = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")


@_ANNOUNCED
@pytest.mark.parametrize("case", [PER_ROW, SMALL_GROUPS], ids=str)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_backend_of_the_reason(gptqmodel: ModuleType, workshop: Workshop, runtime: str, case: Case) -> None:
    """Where the reason names a backend, the artifact loads with it."""
    artifact = workshop.make(case)
    chosen: dict[str, Any] = {"backend": "gptq_torch"}
    if runtime == "transformers":
        chosen = {"quantization_config": GPTQConfig(bits=4, **chosen)}
    _assert_loads(_load(gptqmodel, runtime, artifact, dtype=torch.float16, **chosen), artifact)


@_ANNOUNCED
def test_exact_kernel(workshop: Workshop, gptqmodel: ModuleType) -> None:
    """A kernel that dequantizes and multiplies in float32 agrees to the rounding of its float16 weights."""
    artifact = workshop.make(next(case for case in CASES if case.name == "asymmetric"))
    exact = GPTQConfig(bits=4, backend="gptq_torch")
    model = _load(gptqmodel, "transformers", artifact, dtype=torch.float32, quantization_config=exact)
    assert relative_difference(logits_of(model, artifact.tokens), artifact.logits) <= 1e-3
