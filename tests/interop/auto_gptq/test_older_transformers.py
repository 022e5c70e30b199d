"""Our own tasks under transformers 4.57, which AutoGPTQ holds back, and under transformers 5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.interop.auto_gptq.quantize_bundled import MODES

pytestmark = pytest.mark.interop

ROOT = Path(__file__).parents[3]
NEWER = os.environ.get("LLAMACONV_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
"""The interpreter of the environment with transformers 5."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the two environments made, by the major version of transformers."""
    running = {}
    for major, interpreter in (("4", sys.executable), ("5", NEWER)):
        out = tmp_path_factory.mktemp(f"transformers-{major}-")
        command = [interpreter, str(Path(__file__).with_name("quantize_bundled.py")), str(out)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        running[major] = out, subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    for _, process in running.values():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return {major: out for major, (out, _) in running.items()}


def _manifest(out: Path) -> tuple[dict[str, Any], str]:
    manifest = json.loads((out / "llamaconv.json").read_text())
    return manifest, manifest["libraries"].pop("transformers")


@pytest.mark.parametrize("mode", MODES)
def test_same_bytes(outputs: dict[str, Path], mode: str) -> None:
    """Both write the same files, byte for byte, but for the version of transformers in llamaconv.json."""
    old, new = outputs["4"] / mode, outputs["5"] / mode
    names = sorted(path.name for path in old.iterdir())
    assert names == sorted(path.name for path in new.iterdir())
    assert [name for name in names if (old / name).read_bytes() != (new / name).read_bytes()] == ["llamaconv.json"]
    (old_manifest, old_version), (new_manifest, new_version) = _manifest(old), _manifest(new)
    assert old_manifest == new_manifest
    assert (old_version, new_version.partition(".")[0]) == (version("transformers"), "5")


def test_same_figures(outputs: dict[str, Path]) -> None:
    """Both find the same perplexity, KL divergence and agreement, to the last bit."""
    old, new = (json.loads((out / "figures.json").read_text()) for out in (outputs["4"], outputs["5"]))
    assert old == new
    assert old.keys() == set(MODES)
