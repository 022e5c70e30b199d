from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.tasks.download import download
from tests.hub.downloads import environment, impatient

FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "LICENSE": b"free\n",
    "README.md": b"# m\n",
    "a file with spaces, 100 % + #1 & more?.txt": b"spaces\n",
    "config.json": b'{"model_type": "llama"}',
    "empty.txt": b"",
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(100_003),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(70_001),
    "model.safetensors.index.json": b"{}",
    "onnx/deep/er/model.bin": random.Random(3).randbytes(30_011),
    "onnx/model.onnx": b"graph",
    "original/consolidated.00.pth": b"zip",
    "tokenizer [v3].json": b"{}",
    "Überblick/日本語.md": "ünïcode\n".encode(),
}
SELECTIONS: list[tuple[list[str], list[str]]] = [
    ([], []),
    (["*.json"], []),
    (["*.json", "*.safetensors"], []),
    ([], ["onnx/*", "*.md"]),
    (["onnx/"], []),
    (["*"], ["onnx/", "original/"]),
    (["*.safetensors"], ["*-00002-*"]),
    (["model-0000[13]*"], []),
    (["tokenizer [[]v3].json", "*#?*"], []),
    (["[ÜU]*", "*.md"], ["README.*", "*.MD"]),
    (["*/*"], ["*.bin"]),
    (["?git*tributes", "*[!0-9]"], ["nothing"]),
]
SCRIPT = """
import json, sys
from huggingface_hub import snapshot_download
for number, (allowed, ignored) in enumerate(json.loads(sys.argv[2])):
    patterns = {"allow_patterns": allowed or None, "ignore_patterns": ignored or None}
    snapshot_download("org/m", local_dir=f"{sys.argv[1]}/{number}", **patterns)
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """Listings in several pages, large files behind a redirect."""
    with Hub([Repository("org/m", FILES)], page_size=5) as hub:
        yield hub


@pytest.fixture(scope="module")
def reference(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What huggingface_hub makes of each selection, in folders by number."""
    folder = tmp_path_factory.mktemp("reference")
    switches = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(SELECTIONS)]
    done = subprocess.run(command, env=environment(folder, **switches), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def tree(directory: Path) -> dict[str, bytes | None]:
    """Names and bytes of files, and names of folders, below a directory, less the notes that either tool keeps."""
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*")}
    return {
        name: path.read_bytes() if path.is_file() else None
        for name, path in found.items()
        if name.split("/")[0] != ".cache"
    }


@pytest.mark.parametrize("number", range(len(SELECTIONS)), ids=str)
def test_the_tree_is_that_of_huggingface_hub(hub: Hub, reference: Path, tmp_path: Path, number: int) -> None:
    """The same names and bytes for the same patterns; all files are what ``*`` matches."""
    allowed, ignored = SELECTIONS[number]
    settings = impatient(hub, include=tuple(allowed or ["*"]), exclude=tuple(ignored))
    result = download("org/m", tmp_path, settings)
    ours = tree(tmp_path)
    assert ours == tree(reference / str(number))
    assert sorted(one.file.name for one in result.files) == sorted(name for name in ours if ours[name] is not None)


def test_everything_is_the_repository(reference: Path) -> None:
    """The reference itself is what was served."""
    assert {name: data for name, data in tree(reference / "0").items() if data is not None} == FILES
