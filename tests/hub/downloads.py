"""Downloads as the tests make them: in this process, or with the command in one of its own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import LlamaconvError
from llamaconv.hub.settings import DownloadSettings
from llamaconv.tasks.download import download

__all__ = [
    "FILES",
    "command_line",
    "contents",
    "environment",
    "failure",
    "fetches",
    "impatient",
    "repository",
    "run",
    "wait_until",
]

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": random.Random(0).randbytes(300_007),
    "tokenizer.json": random.Random(1).randbytes(5_003),
}
"""A model, complete for the eyes of a download; the weights are in large file storage."""

_NOT_OURS = ("HF_", "HUGGING", "LLAMACONV_", "SSL_CERT_")


def repository(name: str = "org/m", **settings: Any) -> Repository:
    """One commit with ``FILES``."""
    return Repository(name, FILES, **settings)


def impatient(hub: Hub | str, **settings: Any) -> DownloadSettings:
    """For a download in this process from that Hub, or from that endpoint: short waits, nothing of the environment."""
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    defaults: dict[str, Any] = {"endpoints": (endpoint,), "token": "", "proxy": "", "offline": False}
    return DownloadSettings(**{**defaults, "max_wait": 0.01, "timeout": 1.0, **settings})


def failure(hub: Hub, directory: Path, name: str = "org/m", **settings: Any) -> LlamaconvError:
    """What a download fails with at its first attempt; the directory stays as it was, and nothing waits."""
    existed = directory.exists()
    with pytest.raises(LlamaconvError) as caught:
        download(name, directory, impatient(hub, **{"retries": 0, **settings}))
    assert directory.exists() == existed
    return caught.value


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by name, less what downloads keep for themselves there."""
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".cache/llamaconv/")}


def fetches(hub: Hub) -> list[tuple[str, int | None]]:
    """Names of the files that the Hub was asked for, in order, with the first byte of the range, None for no range."""
    asked = [(request.path.partition("/resolve/")[2], request.range) for request in hub.log]
    return [(unquote(path.partition("/")[2]), ask and ask[0]) for path, ask in asked if path]


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The tests' own without proxies, tokens and settings of downloads, with those in ``extra``."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_NOT_OURS) and not name.lower().endswith("_proxy")
    }
    places = {"HF_HOME": str(home / "hf"), "LLAMACONV_CACHE_DIR": str(home / "cache")}
    return {**plain, **places, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(Path(__file__).parents[2]), **extra}


def command_line(*arguments: str | Path) -> list[str]:
    """``llamaconv download`` with these arguments."""
    return [sys.executable, "-m", "llamaconv", "download", *map(str, arguments)]


def run(home: Path, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``llamaconv download`` to its end, in ``environment``."""
    return subprocess.run(
        command_line(*arguments), env=environment(home, **extra), capture_output=True, text=True, check=False
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once something that another process does has come about."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
