from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaconv.config import parse_config
from llamaconv.errors import OutOfMemoryError
from llamaconv.execute import execute
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.model.skeleton import Skeleton
from llamaconv.model.stage_quantizer import StageQuantizer
from llamaconv.model.stream import Stream
from llamaconv.model.workers import Workers
from llamaconv.plan.base import Plan
from llamaconv.plan.quantization import plan_quantization
from llamaconv.plan.selection import select_layers
from llamaconv.quantizers.modes import quantizer_for_mode
from llamaconv.sinks.checkpoint import CheckpointWriter
from llamaconv.sources.open import open_checkpoint
from llamaconv.tasks.loading import load_model
from llamaconv.tasks.quantize import plan
from llamaconv.tensors import TensorSpec
from tests.conftest import Checkpoint
from tests.models import random_tokens
from tests.tasks.runs import digests, run, settings_for, write_tokens

SEQUENCES = tuple(random_tokens(5, 48))


def planned(
    skeleton: Skeleton,
    specs: dict[str, TensorSpec],
    memory: int | None = None,
    workers: int = 2,
    sequences: tuple[torch.Tensor, ...] = SEQUENCES,
) -> Plan:
    quantizer = quantizer_for_mode("gptq.int4", group_size=32)
    return plan_quantization(
        skeleton,
        specs,
        select_layers(skeleton, specs, quantizer, (), False),
        StageQuantizer(quantizer, 0.01, False, False),
        quantizer,
        sequences,
        dtype=None,
        max_shard_size=10**12,
        workers=workers,
        memory=memory,
    )


def planned_for(layers: int, memory: int | None = None, samples: int = 2, **shape: int) -> Plan:
    """For a Llama that exists nowhere; as large as one likes."""
    raw = {
        "model_type": "llama",
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 288,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **shape,
    }
    config = parse_config(json.dumps(raw).encode())
    specs = {name: TensorSpec(name, of, torch.bfloat16) for name, of in (expected_tensors(config) or {}).items()}
    tokens = tuple(torch.zeros(2048, dtype=torch.int32) for _ in range(samples))
    return planned(Skeleton.build(raw, torch.bfloat16), specs, memory, sequences=tokens)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skip": ("*.k_proj", "model.layers.1.*"), "dtype": "bfloat16"},
        {"mode": "llm.int8", "skip": ("*.0.mlp.up_proj",)},
        {"mode": "gptq.int3", "max_shard_size": 50_000, "dtype": "float16"},
        {"mode": "llm.int8", "max_shard_size": 50_000, "dtype": "float32"},
    ],
    ids=str,
)
def test_what_is_planned_is_what_is_written(
    checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any], tied: bool
) -> None:
    """Every source tensor is read in one step; names, shapes, dtypes, files and bytes are as announced."""
    source, mode = checkpoint("qwen2", tie_word_embeddings=tied), settings.get("mode", "gptq.int4")
    tokens = write_tokens(tmp_path / "tokens.npy")
    rest = {name: value for name, value in settings.items() if name != "mode"}
    announced = plan(source, tmp_path / "out", settings_for(mode, tokens, **rest))
    assert not (tmp_path / "out").exists()
    reads = Counter(name for step in announced.steps for name in step.reads)
    assert reads == Counter(open_checkpoint(source).reader.specs.keys())
    out = run(source, tmp_path / "out", mode, tokens, **rest).out
    written = open_checkpoint(out).reader.specs
    assert {spec.name: spec for step in announced.steps for spec in step.writes} == dict(written)
    assert announced.output_bytes == sum(spec.nbytes for spec in written.values())
    for shard in announced.shards:
        specs = open_checkpoint(out / shard.filename).reader.specs
        assert {spec.name: spec for spec in shard.specs} == dict(specs)
        assert shard.nbytes == sum(spec.nbytes for spec in specs.values())


def test_however_little_memory_there_is_the_bytes_are_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """From all samples suspended down to none; below what the plan says it needs, it is refused."""
    ample = planned(load_model(checkpoint(), "float32").skeleton, dict(load_model(checkpoint(), "float32").specs))
    assert ample.notes == ()
    seen: dict[str, str] = {}
    for memory in range(ample.peak_bytes + 100_000, 0, -20_000):
        model = load_model(checkpoint(), "float32")
        try:
            tight = planned(model.skeleton, dict(model.specs), memory)
        except OutOfMemoryError:
            break
        assert tight.peak_bytes <= memory
        note = " ".join(tight.notes)
        if note not in seen:
            out = tmp_path / str(memory)
            out.mkdir()
            with Workers(2) as crew:
                writer = CheckpointWriter(out, tight.shards)
                execute(tight, model.tensors, writer, Stream(crew), "quantizing")
                writer.finish()
            seen[note] = digests(out)["model.safetensors"]
    counts = [match[1] if (match := re.search(r"forwards of (\d) of 5 samples", note)) else "5" for note in seen]
    assert counts == sorted(counts, reverse=True)
    assert {"5", "0"} < set(counts)
    assert len(set(seen.values())) == 1


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    """As much as the error names is enough; a little less is not."""
    with pytest.raises(OutOfMemoryError) as caught:
        planned_for(3, 5_000_000, hidden_size=768, intermediate_size=1920, samples=128)
    found = re.fullmatch(
        r"needs ([\d.]+) MB of memory for 128 calibration samples; 5\.0 MB are available", str(caught.value)
    )
    assert found
    needed = float(found[1]) * 1e6
    assert planned_for(3, int(needed + 1e5), hidden_size=768, intermediate_size=1920, samples=128).notes
    with pytest.raises(OutOfMemoryError):
        planned_for(3, int(needed - 1e5), hidden_size=768, intermediate_size=1920, samples=128)
    assert caught.value.exit_code == 7


def test_memory_does_not_grow_with_depth() -> None:
    """One block at a time: 8 layers or 32, the peak is the same; the arithmetic is not."""
    shallow, deep = planned_for(8), planned_for(32)
    assert shallow.peak_bytes == deep.peak_bytes
    assert deep.flops == pytest.approx(4 * shallow.flops)


def test_a_model_of_70_billion_parameters_is_planned_from_shapes() -> None:
    """Nothing is allocated, and the figures are of the size that one expects."""
    shape = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
    large = planned_for(80, vocab_size=128256, samples=128, **shape)
    assert len(large.steps) == 1 + 80 + 2
    assert 39e9 < large.output_bytes < 47e9  # 5.1 bits each, and two embeddings in 16 bits
    assert pytest.approx(large.resident_bytes, rel=0.05) == 4.2e9
    forward = 2 * 68.5e9 * 128 * 2048
    assert forward < large.flops < 3 * forward


def test_a_plan_is_described_for_people_and_for_machines(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A line per step and the totals; the same as JSON."""
    tokens = write_tokens(tmp_path / "tokens.npy", 128, 16)
    found = plan(checkpoint(), tmp_path / "out", settings_for("gptq.int4", tokens))
    lines = found.describe().splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [step.name for step in found.steps]
    assert lines[1].split()[1:6] == ["9", "tensors", "->", "30", "59.2"]
    assert lines[-1].startswith(f"writes {found.output_bytes / 1000:.1f} kB in 1 file(s); needs ")
    as_json = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert as_json["output_bytes"] == found.output_bytes == sum(shard["bytes"] for shard in as_json["shards"])
    assert as_json["peak_bytes"] == found.peak_bytes
    assert as_json["steps"][1]["writes"][0] == "model.layers.0.self_attn.q_proj.qweight [12, 192] int32"
    assert as_json["notes"] == []
