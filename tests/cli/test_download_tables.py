from __future__ import annotations

from pathlib import Path

import pytest

from llamaconv.cli.download import plan_tables, result_tables
from llamaconv.cli.output import Screen
from llamaconv.hub.repository import Digest, RemoteFile
from llamaconv.hub.result import DownloadPlan, DownloadResult, FetchedFile, PlannedFile, Skipped

COMMIT = "5" * 40
HASH = Digest("sha256", "ab" * 32)


def test_a_result_says_what_was_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    """Files and bytes, what was resumed or tried again, what was skipped and why, and where it all is."""
    names = ("config.json", "model-1.safetensors", "model-2.safetensors")
    config, first, second = (RemoteFile(name, 2_000_000, HASH) for name in names)
    files = FetchedFile(config, "there"), FetchedFile(first, "fetched", 2_000_000), FetchedFile(second, "resumed", 5000)
    skipped = (
        Skipped("README.md", "not part of the model", ("README.md",)),
        Skipped("3 files in onnx/", "another \x1b[31mformat", ("onnx/a", "onnx/b", "onnx/c")),
    )
    result = DownloadResult(
        "o/n", "main", COMMIT, Path("there"), files, skipped, ("old.safetensors",), 3, 1, 2.0, Path("lock.json")
    ).to_json()
    assert result["removed"] == ["old.safetensors"]
    assert [one["names"] for one in result["skipped"]] == [("README.md",), ("onnx/a", "onnx/b", "onnx/c")]
    Screen(quiet=True, json=False).result(result, result_tables)
    assert capsys.readouterr().out.splitlines() == [
        f"model         o/n, main at {COMMIT}",
        "directory     there",
        "holds         3 files, 6 MB",
        "fetched       2 files, 2 MB",
        "resumed       1 file",
        "retries       3",
        "wrong hashes  1, fetched again",
        "removed       old.safetensors",
        "lock          lock.json",
        "skipped       README.md: not part of the model",
        "              3 files in onnx/: another \\x1b[31mformat",
        "took          2.0 s, 1 MB/s",
    ]


def test_a_plan_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """Each file with its size and what is there of it, then the sums and the space for it."""
    config, weights = RemoteFile("config.json", 768, HASH), RemoteFile("model.safetensors", 5_000_000, HASH)
    files = PlannedFile(config, 768, "there"), PlannedFile(weights, 1_000_000, "partial")
    planned = DownloadPlan("o/n", "v1", COMMIT, Path("there"), files, (), (), 8_000_000_000).to_json()
    Screen(quiet=True, json=False).result(planned, plan_tables)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "state", "size", "there"]
    assert lines[2].split() == ["config.json", "there", "768", "bytes", "768", "bytes"]
    assert lines[3].split() == ["model.safetensors", "partial", "5", "MB", "1", "MB"]
    assert lines[4:] == [
        "",
        f"model       o/n, v1 at {COMMIT}",
        "directory   there",
        "to fetch    4 MB of 5 MB",
        "free space  8 GB",
    ]


def test_a_plan_names_every_state(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether a file is fetched, and what becomes of the one that is there."""
    states = ("there", "partial", "missing", "to check", "outdated", "to replace")
    files = tuple(PlannedFile(RemoteFile(f"{number}.json", 9, HASH), 0, state) for number, state in enumerate(states))
    planned = DownloadPlan("o/n", "v1", COMMIT, Path("there"), files, (), (), 8_000_000_000).to_json()
    Screen(quiet=True, json=False).result(planned, plan_tables)
    lines = capsys.readouterr().out.splitlines()[2:8]
    assert [line.split("  ")[1].strip() for line in lines] == list(states)
