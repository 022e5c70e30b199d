"""What tests of quantizers share: one thread, and weights that GPTQModel packed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.quantizers.gptq_weights import BITS, random_weight


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices here are small: a second thread costs more than it computes, most of all beside another process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def packed_by_gptqmodel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """``KIND.METHOD.FORMAT.BITS.TENSOR`` as GPTQModel packs what our ``dequantize`` gives of ``random_weight``, and
    ``KIND.METHOD.BITS.weight`` as it dequantizes that. Of KIND ``from_1`` no zero point is 0, of ``from_0`` some are.

    In a process of its own: importing GPTQModel changes the environment variables of the process.
    """
    if importlib.util.find_spec("gptqmodel") is None:
        pytest.skip("gptqmodel is not installed")
    directory = tmp_path_factory.mktemp("gptqmodel")
    parts = {}
    for least in (0, 1):
        for bits in BITS:
            weight = random_weight(bits, bits, "gptq_v2", least_zero=least)
            parts |= {
                f"from_{least}.{bits}.weight": weight.dequantize(),
                f"from_{least}.{bits}.scales": weight.scales.float(),
                f"from_{least}.{bits}.zeros": weight.zeros.int(),
                f"from_{least}.{bits}.g_idx": weight.group_index,
            }
    save_file(parts, directory / "in.safetensors")
    script = Path(__file__).with_name("pack_with_gptqmodel.py")
    child = subprocess.run(
        [sys.executable, script, "in.safetensors", "out.safetensors"],
        cwd=directory,
        env=os.environ | {"GPTQMODEL_DISABLE_PACK_EXT": "1"},  # or it compiles one
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return load_file(directory / "out.safetensors")
