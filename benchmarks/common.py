"""What the benchmarks share: synthetic checkpoints, whole-process measurements, tables."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamaconv.config import parse_config
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.sinks.checkpoint import CheckpointWriter
from llamaconv.sinks.sharding import shard
from llamaconv.tensors import TensorSpec

BUNDLED = Path(__file__).parent.parent / "llamaconv" / "demo" / "model"
BARE_IMPORT = (sys.executable, "-c", "import torch, transformers; transformers.AutoModelForCausalLM")
VOCABULARY = 4096


@dataclass(frozen=True)
class Measured:
    """One finished process."""

    seconds: float
    peak_rss: int
    output: str


def measure(*command: str) -> Measured:
    """Run a command to its end; fails loudly if it does."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")
    return Measured(time.perf_counter() - begun, usage.ru_maxrss * 1024, output)


def alone(*command: str | Path) -> Measured:
    """Run a command to its end; what this process holds does not show in the command's memory."""
    run = measure(sys.executable, str(Path(__file__).with_name("alone.py")), *map(str, command))
    return replace(run, peak_rss=int(run.output.splitlines()[-1]))


def llamaconv(*arguments: str | Path) -> Measured:
    """Run the command line of this checkout."""
    return measure(sys.executable, "-m", "llamaconv", *map(str, arguments))


def synthetic_llama(directory: Path, *, width: int, ffn: int, layers: int, outliers: int = 0, seed: int = 0) -> Path:
    """A random bfloat16 Llama, written tensor by tensor.

    Args:
        directory: Made.
        width, ffn, layers: Its shape; heads of 64, a quarter of them key-value heads.
        outliers: So many channels, the same in each block, leave the norms 30 times as large as the others.
        seed: Of the weights.
    """
    directory.mkdir(parents=True)
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 256,
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "torch_dtype": "bfloat16",
    }
    source = json.dumps(raw, indent=2)
    (directory / "config.json").write_text(source)
    shapes = expected_tensors(parse_config(source.encode(), directory / "config.json"))
    assert shapes is not None
    generator = torch.Generator().manual_seed(seed)
    channels = torch.randperm(width, generator=generator)[:outliers]
    writer = CheckpointWriter(
        directory, shard([TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()], 1_000_000_000)
    )
    for name, shape in shapes.items():
        writer.write(name, _weight(name, shape, channels, generator))
    writer.finish()
    return directory


def _weight(name: str, shape: tuple[int, ...], channels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        weight = torch.ones(shape)
        if name != "model.norm.weight":
            weight[channels] = 30.0
        return weight.bfloat16()
    return (torch.randn(shape, generator=generator) * shape[1] ** -0.5).bfloat16()


def random_tokens(path: Path, samples: int, length: int) -> Path:
    """An array of token ids to calibrate a random model on."""
    np.save(path, np.random.default_rng(0).integers(0, VOCABULARY, (samples, length), dtype=np.int32))
    return path


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return result


def publish(rows: Sequence[dict[str, Any]], to: Path | None) -> None:
    """Print rows as a table, and write them if asked to."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if to is not None:
        to.write_text(json.dumps(list(rows), indent=2) + "\n")


def files(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Each file's name and contents, in order."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(directory)), path.read_bytes()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
