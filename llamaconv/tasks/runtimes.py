"""Which runtimes load what was written, and give the logits of the weights it stands for.

What is said here of GPTQModel 7.6, of transformers 5.23 with optimum 2.3 (both on a CPU) and of AutoGPTQ 0.7.1 is held
against these runtimes by ``tests/interop``. vLLM is answered for from its source: ``quantization/auto_gptq.py``,
``utils/gptq_utils.py`` and ``utils/marlin_utils.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llamaconv.layouts.hugging_face import HEAD
from llamaconv.plan.selection import Selection
from llamaconv.quantizers.base import Quantizer
from llamaconv.quantizers.gptq import Gptq
from llamaconv.tasks.loading import LoadedModel

__all__ = ["VLLM_FUSED", "runtimes"]

VLLM_FUSED: Mapping[str, tuple[str, ...]] = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Layers of a block that vLLM computes as one, by the name it gives that one."""

# GPTQModel ``qlinear/torch.py``: the kernel that takes the most.
_GPTQMODEL_GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)
# torch ``_weight_int4pack_mm_for_cpu``, behind the kernels that GPTQModel prefers for these groups.
_INT4_PREFERRED, _INT4_COLUMNS = (-1, 16, 32, 64, 128), (32, 64, 128, 256)
_AUTO_GPTQ_FAMILIES = ("llama", "mistral", "qwen2")


def runtimes(quantizer: Quantizer, selection: Selection, model: LoadedModel) -> dict[str, str]:
    """For each runtime ``"yes"``, or the fact that keeps it from loading the checkpoint.

    Args:
        quantizer: What the layers are stored with.
        selection: Which layers are.
        model: The dense model.
    """
    if not isinstance(quantizer, Gptq):
        return {"transformers": "yes"}
    shapes = list(_shapes(selection, model))
    kernels = _gptqmodel_kernels(quantizer, {columns for _, columns in shapes})
    head = ("it cannot load a quantized lm_head", selection.head is not None)
    return {
        "gptqmodel": _first(
            ("it takes asymmetric checkpoints in this format from no other tool", not quantizer.grid.symmetric),
            *kernels,
        ),
        "transformers": _first(
            head, ("it cannot skip a layer in some blocks only", len(set(selection.blocks)) > 1), *kernels
        ),
        "auto-gptq": _first(
            (
                f"shown to load {', '.join(_AUTO_GPTQ_FAMILIES)} only",
                model.config.model_type not in _AUTO_GPTQ_FAMILIES,
            ),
            ("it cannot skip layers", bool(selection.skipped)),
            head,
            ("it loses an embedding that is tied to the head", model.config.tied and HEAD not in model.specs),
        ),
        "vllm": _first(*_vllm(quantizer, selection, shapes)),
    }


def _first(*reasons: tuple[str, bool]) -> str:
    return next((reason for reason, holds in reasons if holds), "yes")


def _shapes(selection: Selection, model: LoadedModel) -> Iterator[tuple[int, ...]]:
    """[N out, K in] of each quantized layer."""
    for block, layers in zip(model.skeleton.block_names, selection.blocks, strict=True):
        yield from (model.specs[f"{block}.{layer}.weight"].shape for layer in layers)
    if selection.head is not None:
        yield model.specs[f"{selection.head}.weight"].shape


def _gptqmodel_kernels(quantizer: Gptq, inputs: set[int]) -> list[tuple[str, bool]]:
    """What keeps GPTQModel's kernels, which transformers uses too, from a grid."""
    size = quantizer.group_size
    columns = inputs if size == -1 else {size}
    int4 = quantizer.grid.bits == 4 and size in _INT4_PREFERRED
    return [
        (f"its kernels take no groups of {size}", size not in _GPTQMODEL_GROUPS),
        (
            f"on a CPU, its default kernel fails on groups of {max(columns)}: give it backend='gptq_torch'",
            int4 and not columns <= set(_INT4_COLUMNS),
        ),
    ]


def _vllm(quantizer: Gptq, selection: Selection, shapes: list[tuple[int, ...]]) -> list[tuple[str, bool]]:
    bits = quantizer.grid.bits
    split = any(
        0 < len(set(parts) & set(layers)) < len(parts) for layers in selection.blocks for parts in VLLM_FUSED.values()
    )
    return [
        (f"it has no kernel for {bits} bits", bits not in (4, 8)),
        ("its kernels take symmetric grids only", not quantizer.grid.symmetric),
        ("its kernels take groups of 32, 64, 128 or -1", quantizer.group_size not in (-1, 32, 64, 128)),
        (
            "its kernels need outputs in multiples of 64 and inputs in multiples of 128",
            any(rows % 64 or columns % 128 for rows, columns in shapes),
        ),
        ("it fuses q, k and v, and gate and up: of each, skip all or none", split),
    ]
