from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llamaconv.errors import CheckpointError, InputError, UnsupportedError
from llamaconv.sources.weights import open_weights, open_weights_together
from tests.sources.files import entry, write_raw
from tests.sources.torch_files import Call, pickled, write_archive, write_legacy, write_zip


def refused(path: Path, kind: type[InputError] = CheckpointError) -> InputError:
    with pytest.raises(kind) as caught:
        open_weights(path)
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pth", "pt", "json", "whatever"])
def test_the_content_tells_the_format(tmp_path: Path, suffix: str) -> None:
    """A safetensors file named .bin, a zip or a pickle named .safetensors: what is in it counts."""
    tensors = {"w": torch.arange(3)}
    save_file(tensors, tmp_path / f"s.{suffix}")
    write_zip(tmp_path / f"z.{suffix}", tensors)
    write_legacy(tmp_path / f"l.{suffix}", tensors)
    for path in tmp_path.iterdir():
        assert open_weights(path)["w"].read().tolist() == [0, 1, 2]


def test_a_header_as_long_as_a_mark_is_no_mark(tmp_path: Path) -> None:
    """A header of 0x280 or 0x4034b50 bytes begins as a pickle or as a zip archive does, and is read all the same."""
    for length, mark in ((0x280, b"\x80\x02"), (0x4034B50, b"PK\3\4")):
        path = write_raw(tmp_path / "x.safetensors", b"{}".ljust(length))
        assert path.read_bytes().startswith(mark)
        assert open_weights(path).specs == {}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_recognised(tmp_path: Path, name: str) -> None:
    """A clone without LFS has small text files where the weights should be."""
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    error = refused(path)
    assert error.message == f"{path}: a Git LFS pointer, not the weights."
    assert error.hint == "Run `git lfs pull` there."


def test_other_formats_are_named(tmp_path: Path) -> None:
    """GGUF files and tar archives are well-formed, but not ours to read."""
    gguf, tar = tmp_path / "model.gguf", tmp_path / "model.pth"
    gguf.write_bytes(b"GGUF\3\0\0\0{" + b"\xff" * 64)
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    for path, what in ((gguf, "GGUF files"), (tar, "tar archives, the oldest of torch's formats,")):
        error = refused(path, UnsupportedError)
        assert error.message == f"{path}: {what} are not read."
        assert error.hint == "Use a safetensors checkpoint of the model."


def test_what_is_nothing_known_is_damaged(tmp_path: Path) -> None:
    """Named .safetensors, its header says why; under another name it could be anything."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"nothing at all")
    assert refused(path).message == f"{path}: 14 bytes that are neither a safetensors file nor one of torch.save."
    other = path.rename(tmp_path / "model.safetensors")
    assert refused(other).message == (
        f"{other}: a header of 2334956330817974126 bytes, where safetensors allows 100000000."
    )


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe does not make us wait, a folder and an absent file are named."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, fault in [
        ("pipe", "not a regular file."),
        ("folder", "not a regular file."),
        ("absent", "cannot be read: No such file or directory."),
    ]:
        assert refused(tmp_path / name).message == f"{tmp_path / name}: {fault}"


def test_all_faults_of_all_files_are_in_one_error(tmp_path: Path) -> None:
    """Two bad tensors in one file, a truncated other file, and a cut-off archive make four lines."""
    one = write_raw(tmp_path / "1.safetensors", {"a": entry([-1], 0, 4), "b": [], "c": entry([1], 0, 4)})
    two = write_raw(tmp_path / "2.safetensors", {"d": entry([1], 0, 4)}, b"")
    good = write_raw(tmp_path / "3.safetensors", {"e": entry([1], 0, 4)}, bytes(4))
    four = write_zip(tmp_path / "4.bin", {"f": torch.ones(1)})
    os.truncate(four, 100)
    with pytest.raises(CheckpointError) as caught:
        open_weights_together([one, two, good, four])
    assert caught.value.message.splitlines() == [
        f"{one}: tensor 'a' has the impossible shape [-1].",
        f"{one}: tensor 'b' lacks dtype, shape or data_offsets.",
        f"{two}: truncated: the header describes 4 bytes of data, the file has 0.",
        f"{four}: truncated: the zip archive's directory, which is at its end, is missing.",
    ]


def test_several_files_that_are_not_read_are_unsupported(tmp_path: Path) -> None:
    """Two pickles that want more than tensors are well-formed, both."""
    for name in ("1.bin", "2.bin"):
        write_archive(tmp_path / name, {"data.pkl": pickled(Call(print, "nothing"))})
    with pytest.raises(UnsupportedError) as caught:
        open_weights_together(sorted(tmp_path.iterdir()))
    assert caught.value.message.count("wants builtins.print; only tensors") == 2
    assert len(caught.value.message.splitlines()) == 2
