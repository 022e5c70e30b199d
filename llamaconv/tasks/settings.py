"""What each task can be told. Light to import: the command line reads it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CALIBRATED_ONLY", "FACTS", "ConvertSettings", "EvaluateSettings", "QuantizeSettings"]

FACTS = ("rope_theta", "rope_factor", "max_positions", "norm_eps", "vocab_size", "heads")
"""What a user can state of a model whose files do not carry it."""

CALIBRATED_ONLY = (
    "group_size",
    "symmetric",
    "act_order",
    "damping",
    "scales",
    "sweeps",
    "calibration",
    "samples",
    "seq_len",
    "seed",
    "compute_dtype",
    "fallback",
)
"""Settings that say how GPTQ goes about it; LLM.int8 looks at nothing but the weights."""


@dataclass(frozen=True)
class QuantizeSettings:
    """What to do and how.

    Attributes:
        mode: ``gptq.int4|int8|int3|int2`` or ``llm.int8``.
        group_size: Columns that share a scale, -1 for all.
        symmetric: Zero point in the middle of the codes.
        act_order: Quantize columns in the order of falling Hessian diagonal.
        damping: Fraction of the Hessian's mean diagonal added to its diagonal.
        scales: ``"search"`` for the least weighted error, ``"minmax"`` to cover the whole range.
        sweeps: Passes of coordinate descent over scales and codes after GPTQ's walk.
        lm_head: Quantize the head too.
        skip: Glob patterns on full layer names; what matches stays dense.
        calibration: File, or None for the built-in corpus.
        samples, seq_len: Sequences and their length; ``seq_len`` None is 2,048 or the model's maximum.
        seed: Of the documents' order.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``.
        dtype: Of what stays dense: ``"keep"`` or a dtype's name.
        compute_dtype: Of forwards: ``"auto"`` or a dtype's name.
        threads: Worker threads; never changes a bit of the result.
        max_shard_size: Bytes.
        fallback: ``"rtn"`` rounds to nearest where a Hessian cannot be factored; None fails.
        layout: Of the output: ``"hf"``, or ``"lit-llama"`` for its ``ColBlockQuantizedLinear``.
        size: Name of lit-llama's folder, None for the model that lit-llama looks up by its width.
        overwrite: Replace what is at the destination.
    """

    mode: str
    group_size: int = 128
    symmetric: bool = True
    act_order: bool = False
    damping: float = 0.01
    scales: Literal["search", "minmax"] = "search"
    sweeps: int = 3
    lm_head: bool = False
    skip: tuple[str, ...] = ()
    calibration: str | None = None
    samples: int = 128
    seq_len: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "keep"
    compute_dtype: str = "auto"
    threads: int | None = None
    max_shard_size: int = 5_000_000_000
    fallback: Literal["rtn"] | None = None
    layout: Literal["hf", "lit-llama"] = "hf"
    size: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class EvaluateSettings:
    """What to judge on and against.

    Attributes:
        against: The reference checkpoint, usually the dense source.
        text: Text or token file; None for the built-in corpus's held-out documents.
        samples, seq_len: Of what is evaluated; None for all of it, and 2,048 or the model's maximum.
        device, compute_dtype, threads: As in quantization; float32 unless told otherwise.
        max_kl: Gate: mean KL from the reference, nats per position.
        max_ppl_ratio: Gate: perplexity over the reference's.
    """

    against: Path | None = None
    text: str | None = None
    samples: int | None = None
    seq_len: int | None = None
    device: str = "auto"
    compute_dtype: str = "float32"
    threads: int | None = None
    max_kl: float | None = None
    max_ppl_ratio: float | None = None


@dataclass(frozen=True)
class ConvertSettings:
    """Into what, and how.

    Attributes:
        to: Layout of the output: ``hf``, ``litgpt``, ``lit-llama`` or ``meta``.
        layout: Of the source, None to tell it from the tensors' names.
        format: Of weight files in Hugging Face's layout; the others have torch files.
        dtype: Of floating-point tensors: ``"keep"`` or a dtype's name.
        allow_overflow: Accept values that become infinite or zero in ``dtype``.
        dequantize: Make dense weights of quantized ones.
        tensor_parallel: Files that Meta's layout is split over.
        embedding_split: How Meta's embedding is: ``"rows"`` (Llama 3), ``"columns"`` (Llama 1 and 2), None by the
            vocabulary.
        size: Name of lit-llama's folder, None for the model that lit-llama looks up by its width.
        max_shard_size: Bytes of a weight file in Hugging Face's layout, None for 5 GB.
        verify: Read the output back and compare tensors and logits with the source's.
        workers: Steps at a time; never changes a bit of the result.
        rope_theta, rope_factor, max_positions, norm_eps, vocab_size, heads: Of the source, where its files do not say.
        overwrite: Replace what is at the destination.
    """

    to: str
    layout: str | None = None
    format: Literal["safetensors", "torch"] = "safetensors"
    dtype: str = "keep"
    allow_overflow: bool = False
    dequantize: bool = False
    tensor_parallel: int = 1
    embedding_split: Literal["rows", "columns"] | None = None
    size: str | None = None
    max_shard_size: int | None = None
    verify: bool = False
    workers: int | None = None
    rope_theta: float | None = None
    rope_factor: float | None = None
    max_positions: int | None = None
    norm_eps: float | None = None
    vocab_size: int | None = None
    heads: int | None = None
    overwrite: bool = False
