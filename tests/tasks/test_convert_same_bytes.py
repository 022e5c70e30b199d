"""One run, two runs, however many workers, whatever happened before: the same bytes in every file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llamaconv
from llamaconv.progress import Progress
from tests.conftest import Checkpoint
from tests.tasks.conftest import Quantized
from tests.tasks.conversions import LLAMA_1, WHOLE, to
from tests.tasks.runs import digests

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("hf", {"format": "torch", "max_shard_size": 200_000}),
    ("hf", {"dtype": "bfloat16", "max_shard_size": 200_000}),
    ("litgpt", {}),
    ("litgpt", {"dtype": "float16", "allow_overflow": True}),
    ("lit-llama", {}),
    ("meta", {"tensor_parallel": 2}),
]


def twice(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, **settings: Any) -> None:
    """By absolute and by relative paths, by one worker and by four."""
    first, second = tmp_path / "here", tmp_path / "there" / "and further"
    first.mkdir()
    second.mkdir(parents=True)
    copy = shutil.copytree(source, second / "model")
    one = to(layout, source, first / "converted", workers=1, verify=True, **settings)
    monkeypatch.chdir(second)
    two = to(layout, Path("model"), Path("result"), workers=4, verify=True, **settings)
    assert digests(one.out) == digests(second / "result")
    assert (one.losses, one.notes, one.bytes, one.files) == (two.losses, two.notes, two.bytes, two.files)
    assert digests(copy) == digests(source)


@pytest.mark.parametrize(("layout", "settings"), VARIANTS, ids=str)
def test_two_runs_from_different_folders(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, settings: dict[str, Any]
) -> None:
    """The manifest included; the source stays as it is."""
    twice(checkpoint(**LLAMA_1), tmp_path, monkeypatch, layout, **settings)


@pytest.mark.parametrize(("layout", "settings"), [("lit-llama", {}), ("hf", {"dequantize": True})], ids=str)
def test_two_runs_on_a_quantized_checkpoint(
    quantized_llama: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    settings: dict[str, Any],
) -> None:
    """Likewise."""
    twice(quantized_llama(**WHOLE), tmp_path, monkeypatch, layout, **settings)


def test_an_interrupted_run_leaves_no_output(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Ctrl-C in mid-run: only the working folder may stay, and the next run clears it and goes through."""

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        to("litgpt", checkpoint(), out, interrupt)
    assert {path.name for path in tmp_path.iterdir()} <= {"out.partial"}
    again, fresh = to("litgpt", checkpoint(), out), to("litgpt", checkpoint(), tmp_path / "fresh")
    assert digests(again.out) == digests(fresh.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


@pytest.mark.parametrize(("layout", "point"), [("meta", "begin"), ("litgpt", "end")])
def test_a_killed_run_leaves_no_output(checkpoint: Checkpoint, tmp_path: Path, layout: str, point: str) -> None:
    """SIGKILL while tensors are written, and when all are: the output is absent, and the next run goes through."""
    out = tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-m", "tests.tasks.kill_in_conversion", checkpoint(head_dim=16), out, layout, point],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(llamaconv.__file__).parents[1])},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    left = tmp_path / "out.partial"
    assert left.is_dir()
    if point == "end":
        assert (left / "lit_model.pth").stat().st_size > 800_000
    again = to(layout, checkpoint(head_dim=16), out)
    fresh = to(layout, checkpoint(head_dim=16), tmp_path / "fresh")
    assert digests(again.out) == digests(fresh.out)
    assert not left.exists()
