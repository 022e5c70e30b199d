from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sinks.processes import ENVIRONMENT

PEAK = """
import sys
from pathlib import Path
import torch
from llamaconv.extents import Extent
from llamaconv.sinks.checkpoint import CheckpointWriter
from llamaconv.sinks.sharding import Shard, shard
from llamaconv.tensors import TensorSpec

folder = Path(sys.argv[1])

def peak_kib(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])

def grown(suffix, fill):
    specs = [TensorSpec(f"t{i}", (2, 2**20), torch.float32) for i in range(20)]
    warm = TensorSpec("w", (1,), torch.int8)
    writer = CheckpointWriter(folder, [Shard(f"warm{suffix}", (warm,)), *shard(specs, 2**26, suffix=suffix)])
    writer.write("w", torch.zeros(1, dtype=torch.int8))
    before = peak_kib(reset=True)
    for i, spec in enumerate(specs):
        fill(writer, spec, i)
    writer.finish()
    return peak_kib() - before

source = folder / "source"
source.write_bytes(bytes(2**23))
info = source.stat()
extent = Extent(source, 0, 2**23, (info.st_size, info.st_mtime_ns))
for suffix in (".safetensors", ".bin"):
    print(grown(suffix, lambda writer, spec, i: writer.copy(spec.name, [extent])))
for suffix in (".safetensors", ".bin"):
    print(grown(suffix, lambda writer, spec, i: writer.write(spec.name, torch.full(spec.shape, float(i)))))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's resettable peak")
def test_the_memory_is_that_of_a_tensor_or_less(tmp_path: Path) -> None:
    """Twenty tensors of 8 MiB raise the peak by a few of them if they are written, by much less if copied."""
    command = [sys.executable, "-c", PEAK, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.stderr == ""
    copied, written = (list(map(int, done.stdout.split()))[at : at + 2] for at in (0, 2))
    assert max(copied) < 6 * 1024
    assert max(written) < 32 * 1024
