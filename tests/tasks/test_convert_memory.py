"""A conversion takes the memory of its largest tensor twice, whatever else there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamaconv.layouts.hugging_face import expected_tensors
from tests.configs import config, write_config
from tests.sinks.processes import ENVIRONMENT

PEAK = """
import sys
from pathlib import Path
import torch
from llamaconv.memory import give_back_freed_memory
from llamaconv.tasks.convert import ConvertSettings, convert

give_back_freed_memory()  # as the command line does
source, out, *settings = sys.argv[1:]

def peak_kib(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])

before = peak_kib(reset=True)
convert(Path(source), Path(out), ConvertSettings(**eval(settings[0])))
print(peak_kib() - before, "transformers" in sys.modules)
"""
MIB = 1 << 20
LARGEST = 64 * MIB
SIZES: dict[str, Any] = {"hidden_size": 1024, "vocab_size": 32768, "num_attention_heads": 8, "num_key_value_heads": 4}
SIZES |= {"head_dim": 128, "intermediate_size": 4096, "num_hidden_layers": 2, "rope_theta": 500000.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embedding and head of 64 MiB each, which is most of it."""
    directory = tmp_path_factory.mktemp("wide")
    write_config(directory, **SIZES)
    shapes = expected_tensors(config(**SIZES)) or {}
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    tensors["lm_head.weight"][-1, -1] = 1
    assert max(tensor.nbytes for tensor in tensors.values()) == LARGEST
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def grown(source: Path, out: Path, **settings: Any) -> int:
    """Bytes by which a conversion raises the peak of a process that has imported what it takes."""
    command = [sys.executable, "-c", PEAK, source, out, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    peak, imported = done.stdout.split()
    assert imported == "False"
    return int(peak) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's resettable peak")
@pytest.mark.parametrize(
    "settings",
    [
        {"to": "litgpt"},
        {"to": "meta", "tensor_parallel": 2},
        {"to": "litgpt", "dtype": "float16"},
    ],
    ids=str,
)
def test_the_memory_is_that_of_two_tensors(source: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """And a little more, back too; transformers is not even imported."""
    most = 2 * LARGEST + 60 * MIB
    assert grown(source, tmp_path / "out", **settings) < most
    if settings["to"] == "meta":
        assert grown(tmp_path / "out", tmp_path / "back", to="hf") < most
