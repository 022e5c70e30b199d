from __future__ import annotations

import random
import re
import resource
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import DiskFullError, OutputError
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, command_line, contents, environment, impatient, repository, run
from tests.hub.misbehaving import MisbehavingHub

LARGE = {**FILES, "model.safetensors": random.Random(2).randbytes(1_300_001)}
FULL = "No space left on device"


@contextmanager
def disk(place: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, for as long as the block lasts; ``options`` are those of tmpfs."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "llamaconv-test", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"file systems cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more can be written."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def asked_for(hub: Hub) -> list[str]:
    """The names of the files that were asked for."""
    return [request.path.rpartition("/")[2] for request in hub.log if "/resolve/" in request.path]


def test_a_disk_too_small(tmp_path: Path) -> None:
    """It is refused before the first byte of a file is asked for; the plan still says what would be fetched."""
    with disk(tmp_path / "disk", "size=1m") as small, Hub([Repository("org/m", LARGE)]) as hub:
        arguments = ("org/m", "--local-dir", small / "m", "--endpoint", hub.endpoint)
        child = run(tmp_path, *arguments)
        assert (child.returncode, child.stdout, asked_for(hub)) == (7, "", [])
        error, hint = child.stderr.splitlines()
        found = re.fullmatch(
            rf"Error: {small}/m: 1,305,027 bytes are still to be fetched, ([\d,]+) bytes are free\.", error
        )
        assert found is not None
        assert 1_000_000 < int(found[1].replace(",", "")) < 1_048_576
        assert hint == "Hint: Free some space, or download to another directory. What was fetched stays."
        assert contents(small / "m") == {}
        assert run(tmp_path, *arguments, "--dry-run").returncode == 0
        assert asked_for(hub) == []


def test_only_what_is_missing_needs_room(tmp_path: Path) -> None:
    """A disk with less room than the model has is large enough for the rest of it."""
    with disk(tmp_path / "disk", "size=2m") as small, Hub([Repository("org/m", LARGE)]) as hub:
        download("org/m", small / "m", impatient(hub, files=("model.safetensors",)))
        (small / "filler").write_bytes(bytes(600_000))
        result = download("org/m", small / "m", impatient(hub))
        assert [one.state for one in result.files] == ["fetched", "there", "fetched"]
        assert contents(small / "m") == LARGE


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """What was fetched until then stays, and the next run goes on from there once there is room."""
    with (
        disk(tmp_path / "disk", "size=2m") as small,
        MisbehavingHub([Repository("org/m", LARGE)], rate=1_000_000) as hub,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(download, "org/m", small / "m", impatient(hub))
        end = time.monotonic() + 10
        while sum(request.sent for request in hub.log if request.server == "storage") < 400_000:
            assert time.monotonic() < end
            time.sleep(0.01)
        filler = small / "filler"
        with pytest.raises(OSError, match=FULL):
            fill(filler)
        with pytest.raises(DiskFullError) as caught:
            running.result(20)
        assert caught.value.message == f"{small}/m/model.safetensors: {FULL}."
        assert caught.value.hint == "Free some space or write elsewhere."
        assert "model.safetensors" not in contents(small / "m")
        hub.log.clear()
        with pytest.raises(DiskFullError):
            download("org/m", small / "m", impatient(hub))
        assert asked_for(hub) == []
        filler.unlink()
        result = download("org/m", small / "m", impatient(hub))
        assert {one.file.name: one.state for one in result.files}["model.safetensors"] == "resumed"
        (request,) = [request for request in hub.log if request.server == "storage"]
        assert request.range is not None
        assert 300_000 < (request.range[0] or 0) < 1_300_001
        assert contents(small / "m") == LARGE


@pytest.mark.parametrize("limit", ["size", "nr_inodes"])
def test_a_disk_that_is_full_anywhere(tmp_path: Path, limit: str) -> None:
    """Whichever of our writes is the first without room, it is told as such, and with room all goes well."""
    tiny = {**FILES, "model.safetensors": b"weights", "tokenizer.json": b"{}"}
    amounts = [f"{4 * pages}k" for pages in range(1, 13)] if limit == "size" else [str(most) for most in range(2, 20)]
    ends = set()
    with Hub([Repository("org/m", tiny)]) as hub:
        for amount in amounts:
            with disk(tmp_path / "disk", f"{limit}={amount}") as small:
                lock = small / "lock.json"
                settings = impatient(hub, lock=lock)
                try:
                    download("org/m", small / "m", settings)
                    ends.add("whole")
                except DiskFullError as error:
                    ends.add(error.message.rpartition(": ")[2] if FULL in error.message else "preflight")
                subprocess.run(
                    ["mount", "-o", f"remount,{limit}={'1m' if limit == 'size' else 100}", small], check=True
                )
                download("org/m", small / "m", settings)
                assert contents(small / "m") == tiny
                assert lock.exists()
                assert not list(small.glob("*.tmp"))
                assert not list(small.rglob("*.part"))
                assert not list(small.rglob("*.new"))
    assert ends >= {"whole", f"{FULL}."}


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    """A file that may not become so large is refused before its first byte; what was fetched before it stays."""
    with Hub([repository()]) as hub:
        settings: dict[str, Any] = {"env": environment(tmp_path), "capture_output": True, "text": True}
        command = command_line("org/m", "--local-dir", tmp_path / "m", "--endpoint", hub.endpoint, "--max-workers", "1")

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        child = subprocess.run(command, **settings, preexec_fn=limit, check=False)
        assert child.returncode == 7
        assert [line for line in child.stderr.splitlines() if line.startswith(("Error", "Hint"))] == [
            f"Error: {tmp_path}/m/model.safetensors: File too large.",
            "Hint: Files may not be so large here: write elsewhere, raise `ulimit -f`, or make smaller shards.",
        ]
        assert "model.safetensors" not in asked_for(hub)
        assert contents(tmp_path / "m").keys() <= {"config.json"}  # its hash may not have been checked yet
        hub.log.clear()
        download("org/m", tmp_path / "m", impatient(hub))
        assert sorted(asked_for(hub)) == ["model.safetensors", "tokenizer.json"]
        assert contents(tmp_path / "m") == FILES


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    """It is refused before anything is asked for; what it holds whole can be checked without writing."""
    with Hub([repository()]) as hub, disk(tmp_path / "disk", "size=1m") as small:
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        with pytest.raises(OutputError) as caught:
            download("org/m", small / "m", impatient(hub))
        assert (caught.value.exit_code, caught.value.message) == (7, f"{small}/m: Read-only file system.")
        assert asked_for(hub) == []
