"""One run, two runs, however many threads, whatever happened before: the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llamaconv
from llamaconv.progress import Progress
from llamaconv.tasks.quantize import quantize
from tests.conftest import Checkpoint
from tests.tasks.runs import digests, run, settings_for, write_tokens

VARIANTS: list[dict[str, Any]] = [
    {},
    {"act_order": True, "symmetric": False, "lm_head": True},
    {"mode": "gptq.int3", "skip": ("*.up_proj",), "max_shard_size": 100_000},
    {"mode": "llm.int8"},
    {"compute_dtype": "bfloat16", "dtype": "bfloat16"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_two_runs_from_different_folders_give_the_same_bytes(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """On one thread and on two, by absolute and by relative paths, with the calibration file elsewhere too."""
    first, second = tmp_path / "here", tmp_path / "there" / "and further"
    first.mkdir()
    second.mkdir(parents=True)
    source = shutil.copytree(checkpoint(), second / "model")
    one = run(checkpoint(), first / "quantized", threads=1, **settings)
    monkeypatch.chdir(second)
    write_tokens(Path("tokens.npy"))
    two = run(Path("model"), Path("result"), threads=2, **settings)
    assert digests(one.out) == digests(second / "result")
    assert (one.layers[0].error, one.notes) == (two.layers[0].error, two.notes)
    assert digests(source) == digests(checkpoint())


def test_the_corpus_gives_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The built-in corpus is shuffled by the seed and by nothing else."""
    runs = [
        quantize(checkpoint(), tmp_path / name, settings_for("gptq.int4", None, samples=4, seq_len=64, **changes))
        for name, changes in (("a", {}), ("b", {"threads": 2}), ("c", {"seed": 1}))
    ]
    a, b, c = (digests(each.out) for each in runs)
    assert a == b
    assert a["model.safetensors"] != c["model.safetensors"]


def test_sequences_of_unequal_length_give_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Text that does not fill its last sequence, in a model whose attention slides."""
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 3)
    one, two = (run(checkpoint("mistral"), tmp_path / str(n), calibration=text, seq_len=50, threads=n) for n in (1, 2))
    assert digests(one.out) == digests(two.out)
    calibration = json.loads((one.out / "llamaconv.json").read_text())["calibration"]
    assert (calibration["sequences"], calibration["tokens"]) == (4, 163)


def test_an_interrupted_run_leaves_no_output(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Ctrl-C in mid-run: only the working folder may stay, and the next run clears it and goes through."""

    def interrupt(progress: Progress) -> None:
        if progress.detail == "model.layers.2":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint(), out, report=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "tokens.npy"]
    again, fresh = run(checkpoint(), out), run(checkpoint(), tmp_path / "fresh")
    assert digests(again.out) == digests(fresh.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out", "tokens.npy"]


def test_a_killed_run_leaves_no_output(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """SIGKILL in mid-run, with a block's weights written: the output is absent, and the next run goes through."""
    out, tokens = tmp_path / "out", write_tokens(tmp_path / "tokens.npy")
    killed = subprocess.run(
        [sys.executable, "-m", "tests.tasks.kill_in_block", checkpoint(), out, tokens, "model.layers.2"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(llamaconv.__file__).parents[1])},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    left = tmp_path / "out.partial"
    assert sum(path.stat().st_size for path in left.iterdir()) > 100_000
    again, fresh = run(checkpoint(), out), run(checkpoint(), tmp_path / "fresh")
    assert digests(again.out) == digests(fresh.out)
    assert not left.exists()
