from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from threading import Event
from time import monotonic, sleep

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llamaconv.digests import sha256_file
from llamaconv.errors import OutputError, UnsupportedError
from llamaconv.sinks import checkpoint
from llamaconv.sinks.checkpoint import CheckpointWriter, require_writable
from llamaconv.sinks.sharding import Shard, index, shard
from llamaconv.sources.open import open_checkpoint
from llamaconv.tensors import TensorSpec
from tests.sinks.files import extent_of, scattered, specs_of
from tests.sources.files import bits, random_tensor

ZEROS = torch.zeros(4, dtype=torch.int8)
FOUR = [TensorSpec(name, (4,), torch.int8) for name in "abc"]


def test_shards_are_final_one_by_one_and_read_back(tmp_path: Path) -> None:
    """A shard is whole with its last tensor; tensors may come in any order across shards."""
    tensors = {f"t{i}": random_tensor((i + 1, 4), torch.float32, seed=i) for i in range(5)}
    shards = shard(specs_of(tensors), max_bytes=100)
    assert len(shards) == 3
    writer = CheckpointWriter(tmp_path, shards)
    assert list(tmp_path.iterdir()) == []
    for name in ("t3", "t0", "t2"):
        writer.write(name, tensors[name])
    assert load_file(tmp_path / shards[1].filename)["t3"].equal(tensors["t3"])
    for name in ("t1", "t4"):
        writer.write(name, tensors[name])
    digests = writer.finish()
    assert list(digests) == [*(part.filename for part in shards), "model.safetensors.index.json"]
    assert digests == {name: sha256_file(tmp_path / name) for name in digests}
    assert sorted(digests) == sorted(path.name for path in tmp_path.iterdir())
    for part in shards:
        save_file({spec.name: tensors[spec.name] for spec in part.specs}, tmp_path / "theirs", {"format": "pt"})
        assert (tmp_path / part.filename).read_bytes() == (tmp_path / "theirs").read_bytes()
    (tmp_path / "theirs").unlink()
    reader = open_checkpoint(tmp_path).reader
    assert {name: reader[name].read().tolist() for name in reader.specs} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_the_index_file_is_what_transformers_writes(tmp_path: Path) -> None:
    """Two spaces of indent, a newline at the end, metadata first."""
    shards = shard(FOUR[:2][::-1], max_bytes=4)
    writer = CheckpointWriter(tmp_path, shards)
    for name in "ab":
        writer.write(name, ZEROS)
    writer.finish()
    assert (tmp_path / "model.safetensors.index.json").read_text() == (
        '{\n  "metadata": {\n    "total_size": 8\n  },\n  "weight_map": {\n'
        '    "a": "model-00002-of-00002.safetensors",\n    "b": "model-00001-of-00002.safetensors"\n  }\n}\n'
    )
    assert index(shards)["metadata"] == {"total_size": 8}


def test_torch_files_with_an_index(tmp_path: Path) -> None:
    """Any suffix but .safetensors is torch's format; numbered files get an index there too."""
    tensors = {f"t{i}": random_tensor((i + 1, 3), torch.bfloat16, seed=i) for i in range(3)}
    writer = CheckpointWriter(tmp_path, shard(specs_of(tensors), 18, "pytorch_model", ".bin"))
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    digests = writer.finish()
    assert digests == {name: sha256_file(tmp_path / name) for name in digests}
    assert list(digests)[-1] == "pytorch_model.bin.index.json"
    weight_map = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text())["weight_map"]
    assert weight_map == {
        "t0": "pytorch_model-00001-of-00002.bin",
        "t1": "pytorch_model-00001-of-00002.bin",
        "t2": "pytorch_model-00002-of-00002.bin",
    }
    for name, tensor in tensors.items():
        assert torch.load(tmp_path / weight_map[name])[name].equal(tensor)


def test_files_of_ranks_hold_the_same_names(tmp_path: Path) -> None:
    """A shard's prefix is left out of its file, in a subfolder made for it, and there is no index."""
    parts = {f"{rank:02d}/{name}": torch.full((2,), float(rank)) for rank in range(2) for name in ("a", "b/c")}
    shards = [
        Shard(f"7B/consolidated.{rank}.pth", tuple(spec for spec in specs_of(parts) if rank in spec.name), f"{rank}/")
        for rank in ("00", "01")
    ]
    writer = CheckpointWriter(tmp_path, shards)
    for name, tensor in parts.items():
        writer.write(name, tensor)
    assert list(writer.finish()) == ["7B/consolidated.00.pth", "7B/consolidated.01.pth"]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "7B/consolidated.00.pth",
        "7B/consolidated.01.pth",
    ]
    for rank in range(2):
        loaded = torch.load(tmp_path / f"7B/consolidated.{rank:02d}.pth")
        assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"a": [rank] * 2, "b/c": [rank] * 2}


@settings(max_examples=20)  # each makes many files durable
@given(st.integers(1, 12), st.integers(1, 200), st.randoms(use_true_random=False))
def test_two_threads_write_what_one_writes(
    tmp_path_factory: pytest.TempPathFactory, count: int, limit: int, random: Random
) -> None:
    """Tensors written and copied by two threads, over files of both formats, make the same bytes."""
    folder = tmp_path_factory.mktemp("threads")
    tensors = {f"t{i}": random_tensor((i + 1, 3), torch.float16, seed=i) for i in range(count)}
    specs = specs_of(tensors)
    shards = [*shard(specs[::2], limit), *(shard(specs[1::2], limit, "pytorch_model", ".bin"))]
    extents = {name: scattered(folder, tensors[name], random) for name in tensors if random.random() < 0.5}

    def fill(writer: CheckpointWriter, name: str) -> None:
        if name in extents:
            writer.copy(name, extents[name])
        else:
            writer.write(name, tensors[name])

    digests = []
    for threads in (1, 2):
        writer = CheckpointWriter(folder / str(threads), shards)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, [writer] * count, random.sample(list(tensors), count)))
        digests.append(writer.finish())
    assert digests[0] == digests[1]
    assert digests[1] == {name: sha256_file(folder / "2" / name) for name in digests[1]}


def test_files_are_completed_in_the_background_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one file is made durable the next is written; no file is synced twice."""
    real, syncing, go_on, synced = os.fsync, Event(), Event(), Counter[int]()

    def sync(descriptor: int) -> None:
        synced[os.fstat(descriptor).st_ino] += 1
        syncing.set()
        assert go_on.wait(60)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    writer = CheckpointWriter(tmp_path, [Shard("a.safetensors", (FOUR[0],)), Shard("bc.pth", (FOUR[1], FOUR[2]))])
    writer.write("a", ZEROS)
    assert syncing.wait(60)
    writer.write("b", ZEROS)
    (tmp_path / "source").write_bytes(bytes(4))
    writer.copy("c", [extent_of(tmp_path / "source", 0, 4)])
    go_on.set()
    writer.finish()
    assert synced == {(tmp_path / name).stat().st_ino: 1 for name in ("a.safetensors", "bc.pth")}


def test_giving_up_waits_for_one_file_and_closes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the files that wait to be completed, none is begun any more and none stays open."""
    real, syncing, go_on, synced = os.fsync, Event(), Event(), list[int]()

    def sync(descriptor: int) -> None:
        syncing.set()
        assert go_on.wait(60)
        synced.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    held = len(os.listdir("/dev/fd"))
    writer = CheckpointWriter(tmp_path, shard(FOUR, max_bytes=4))
    for name in "abc":
        writer.write(name, ZEROS)
    assert syncing.wait(60)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(writer.abort)
        with pytest.raises(TimeoutError):
            ending.result(0.1)
        go_on.set()
        ending.result(60)
    assert len(synced) == 1
    assert len(os.listdir("/dev/fd")) == held


@settings(max_examples=20)  # each makes many files durable
@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 100), st.randoms(use_true_random=False))
def test_files_are_hashed_piece_by_piece(
    tmp_path_factory: pytest.TempPathFactory, count: int, files: int, step: int, random: Random
) -> None:
    """Whatever the pieces, and in whatever order tensors come, the digests and the bytes are the whole files'."""
    folder = tmp_path_factory.mktemp("pieces")
    tensors = {f"t{i}": random_tensor((i + 1, 3), torch.float16, seed=i) for i in range(count)}
    shards = [
        Shard(f"{number}{suffix}", tuple(specs))
        for number in range(files)
        for suffix, specs in [((".safetensors", ".pth")[number % 2], specs_of(tensors)[number::files])]
        if specs
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_SEALED_AT_ONCE", step)
        patch.setattr(checkpoint, "_SYNCED_AT_ONCE", 4 * step)
        writer = CheckpointWriter(folder, shards)
        with ThreadPoolExecutor(2) as pool:
            order = random.sample(list(tensors), count)
            list(pool.map(writer.write, order, [tensors[name] for name in order]))
        digests = writer.finish()
    assert digests == {part.filename: sha256_file(folder / part.filename) for part in shards}
    for part in shards:
        path = folder / part.filename
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        assert {name: bits(loaded[name]) for name in loaded} == {
            spec.name: bits(tensors[spec.name]) for spec in part.specs
        }


def test_giving_up_does_not_wait_for_what_is_written(tmp_path: Path) -> None:
    """With gigabytes to copy and to hash in two files, abort returns at once and leaves no descriptor."""
    held, size = len(os.listdir("/dev/fd")), 2**31
    with (tmp_path / "source").open("wb") as file:
        file.truncate(size)
    specs = [TensorSpec(name, (size,), torch.int8) for name in "ab"]
    writer = CheckpointWriter(tmp_path, [Shard("a.safetensors", (specs[0],)), Shard("b.pth", (specs[1],))])
    with ThreadPoolExecutor(2) as pool:
        copying = [pool.submit(writer.copy, spec.name, [extent_of(tmp_path / "source", 0, size)]) for spec in specs]
        sleep(0.1)
        begun = monotonic()
        writer.abort()
        assert monotonic() - begun < 2
        for one in copying:
            with suppress(ValueError):  # unless it was done by then
                one.result(60)
    assert len(os.listdir("/dev/fd")) == held
    for path in tmp_path.iterdir():
        path.unlink()


def write_until_told(writer: CheckpointWriter) -> None:
    """Wrong writes, for as long as that is all that is wrong: a thread takes a moment to end."""
    for _ in range(600):
        with suppress(ValueError):
            writer.write("nowhere", ZEROS)
        sleep(0.1)


def test_what_fails_in_the_background_is_told_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that fails while a file is completed ends the writing and the finish, and no descriptor stays."""
    held, failed = len(os.listdir("/dev/fd")), Event()

    def fail(descriptor: int) -> None:
        failed.set()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    shards = shard(FOUR, max_bytes=4)
    writer = CheckpointWriter(tmp_path, shards)
    writer.write("a", ZEROS)
    assert failed.wait(60)
    message = rf"^{tmp_path / shards[0].filename}: Input/output error\.$"
    with pytest.raises(OutputError, match=message):
        write_until_told(writer)
    with pytest.raises(OutputError, match=message):
        writer.finish()
    assert len(os.listdir("/dev/fd")) == held


def test_an_unfinished_checkpoint_is_not_finished(tmp_path: Path) -> None:
    """finish() names the incomplete shards and leaves no descriptor open; wrong writes are refused."""
    held = len(os.listdir("/dev/fd"))
    shards = shard(FOUR, max_bytes=8)
    writer = CheckpointWriter(tmp_path, shards)
    for name in "ac":
        writer.write(name, ZEROS)
    for name, message in [
        ("x", "'x' is in no shard"),
        ("c", "'c' was written already"),
        ("a", "'a' was written already"),
    ]:
        with pytest.raises(ValueError, match=message):
            writer.write(name, ZEROS)
    with pytest.raises(ValueError, match=r"incomplete: model-00001-of-00002\.safetensors$"):
        writer.finish()
    assert len(os.listdir("/dev/fd")) == held
    writer.abort()
    with pytest.raises(ValueError, match=r"'b' comes after the end$"):
        writer.write("b", ZEROS)
    assert len(os.listdir("/dev/fd")) == held


def test_shards_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """A tensor in two shards, a file name twice, an empty shard or a foreign prefix is a mistake of the caller."""
    a, b, _ = FOUR
    for shards, message in [
        ([Shard("1", (a,)), Shard("2", (a, b))], "a tensor is in two shards"),
        ([Shard("1", (a,)), Shard("1", (b,))], "two shards share a file name, or one holds nothing"),
        ([Shard("1", (a,)), Shard("2", ())], "two shards share a file name, or one holds nothing"),
        ([Shard("1", (a,)), Shard("2", (b,), "00/")], "'b' does not begin with '00/', the prefix of 2"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            CheckpointWriter(tmp_path, shards)


def test_what_no_format_can_hold_is_told_before_anything_is_written() -> None:
    """Every tensor that a file cannot hold is named, in one error with a hint for each format."""
    good, odd, own = FOUR[0], TensorSpec("z", (2,), torch.complex128), TensorSpec("__metadata__", (1,), torch.int8)
    require_writable([Shard("a.safetensors", (good,)), Shard("b.bin", (odd, own))])
    other = "Files of torch can hold them: --format torch, where the layout has it."
    cast = "Convert to a dtype that the file can hold, such as --dtype bfloat16."
    nibbles = TensorSpec("0/n", (3,), torch.uint4)
    for shards, lines, hint in [
        (
            [Shard("a.safetensors", (good, odd)), Shard("b.safetensors", (own,))],
            [
                "a.safetensors: safetensors cannot hold z [2] complex128.",
                "b.safetensors: safetensors keeps the name '__metadata__' for itself.",
            ],
            other,
        ),
        (
            [Shard("n.safetensors", (nibbles,))],
            ["n.safetensors: safetensors cannot hold 0/n [3] uint4."],
            cast,
        ),
        ([Shard("7B/x.pth", (nibbles,), "0/")], ["7B/x.pth: torch.save cannot hold n [3] uint4."], cast),
        (
            [Shard("x.pth", (nibbles,)), Shard("a.safetensors", (odd,))],
            [
                "x.pth: torch.save cannot hold 0/n [3] uint4.",
                "a.safetensors: safetensors cannot hold z [2] complex128.",
            ],
            f"{cast} {other}",
        ),
    ]:
        with pytest.raises(UnsupportedError) as caught:
            require_writable(shards)
        assert (caught.value.message.splitlines(), caught.value.hint) == (lines, hint)


def test_a_header_over_the_formats_limit_is_told() -> None:
    """What fits tensor by tensor may still be too many names for one header."""
    names = ("a" * 60_000_000, "b" * 60_000_000)
    with pytest.raises(UnsupportedError) as caught:
        require_writable([Shard("x.safetensors", tuple(TensorSpec(name, (1,), torch.int8) for name in names))])
    assert caught.value.message == ("x.safetensors: a header of 120000136 bytes is over the 100000000 of the format.")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file in the place of a shard's folder is an error of the output."""
    (tmp_path / "7B").touch()
    writer = CheckpointWriter(tmp_path, [Shard("7B/lit-llama.pth", (FOUR[0],))])
    with pytest.raises(OutputError) as caught:
        writer.write("a", ZEROS)
    assert caught.value.message == f"{tmp_path / '7B' / 'lit-llama.pth'}: File exists."
    writer.abort()
