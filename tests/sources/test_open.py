from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from llamaconv.errors import CheckpointError, InputError, UnsupportedError
from llamaconv.sources.open import open_checkpoint
from tests.sources.files import INDEX, save, sharded, write_index
from tests.sources.torch_files import write_legacy, write_zip


def fault_of(path: Path, kind: type[InputError] = CheckpointError) -> InputError:
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize("given", ["", INDEX])
def test_an_index_opens_all_its_shards(tmp_path: Path, given: str) -> None:
    """By its folder or by its own path, an index gives all tensors, in the shards' order."""
    directory = sharded(tmp_path / "model")
    checkpoint = open_checkpoint(directory / given)
    assert checkpoint.directory == directory
    assert list(checkpoint.reader.specs) == ["aa", "b", "ccc"]
    assert checkpoint.reader["ccc"].read().tolist() == [3, 3]
    assert [file.name for file in checkpoint.reader.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
    ]


def test_a_single_file_is_a_checkpoint_beside_its_config(tmp_path: Path) -> None:
    """A file opens whatever its name, even one shard of many; its folder is where the config lies."""
    path = save(tmp_path / "weights.safetensors", "a")
    checkpoint = open_checkpoint(path)
    assert (checkpoint.directory, checkpoint.reader.files) == (tmp_path, (path,))
    directory = sharded(tmp_path / "model")
    assert list(open_checkpoint(directory / "model-00002-of-00002.safetensors").reader.specs) == ["ccc"]


def test_the_hub_caches_links_are_followed(tmp_path: Path) -> None:
    """Snapshots of links into ../../blobs open by folder, file and index; their folder is the snapshot."""
    directory = sharded(tmp_path / "snapshots" / "0123")
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    for given in (directory, directory / INDEX):
        checkpoint = open_checkpoint(given)
        assert checkpoint.directory == directory
        assert checkpoint.reader["b"].read().tolist() == [1, 1]
    assert open_checkpoint(directory / "model-00001-of-00002.safetensors").directory == directory
    assert fault_of(tmp_path).hint == "This is a folder of the Hub's cache: give the one below snapshots/."


@pytest.mark.parametrize("given", ["", "pytorch_model.bin.index.json"])
def test_an_index_of_torch_shards(tmp_path: Path, given: str) -> None:
    """As of safetensors: all shards, and whatever they and the index say differently is named."""
    write_zip(tmp_path / "pytorch_model-00001-of-00002.bin", {"a": torch.ones(1), "b": torch.ones(2)})
    write_legacy(tmp_path / "pytorch_model-00002-of-00002.bin", {"c": torch.ones(3)})
    weights = {"a": "pytorch_model-00001-of-00002.bin", "c": "pytorch_model-00002-of-00002.bin"}
    path = write_index(tmp_path / "pytorch_model.bin.index.json", weights | {"b": weights["a"]})
    reader = open_checkpoint(tmp_path / given).reader
    assert list(reader.specs) == ["a", "b", "c"]
    assert reader.files[-1] == path
    assert reader["c"].read().tolist() == [1] * 3
    write_index(path, weights | {"gone": weights["c"]})
    assert fault_of(tmp_path / given).message == (
        f"{path}: tensor 'gone' should be in {weights['c']!r}, which lacks it.\n"
        f"{path}: tensor 'b' in {weights['a']!r} is not named by the index."
    )
    (tmp_path / weights["c"]).unlink()
    assert fault_of(tmp_path / given).message == f"{path}: the shard {weights['c']!r} is missing."


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path: Path) -> None:
    """Alone in a folder, named itself, or named by an index."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(save))
    for given in (tmp_path, path, write_index(tmp_path / "index.json", {"a": path.name})):
        error = fault_of(given, UnsupportedError)
        assert error.message == (
            f"{path}: the pickle in it wants {save.__module__}.save; only tensors are taken from a pickle, "
            "and nothing in it was run."
        )


OUTSIDE = [
    *("/etc/passwd", "../x.safetensors", "sub/../../x", "..", ".", "", "a\0b"),
    *("C:\\x", "C:x", "..\\x", "\\\\host\\share\\x"),
]


def test_an_index_cannot_point_outside_or_at_nothing(tmp_path: Path) -> None:
    """Absolute paths, "..", drives, NUL and missing shards are all listed in one error."""
    names = ["good.safetensors", "missing.safetensors", "sub/missing.safetensors", "n" * 300, *OUTSIDE]
    save(tmp_path / "good.safetensors", "t0")
    save(tmp_path.parent / "x.safetensors", "x")
    path = write_index(tmp_path / INDEX, {f"t{i}": name for i, name in enumerate(names)})
    error = fault_of(tmp_path)
    assert sorted(error.message.splitlines()) == sorted(
        [f"{path}: the shard {name!r} is not inside the folder." for name in OUTSIDE]
        + [f"{path}: the shard {name!r} is missing." for name in names[1:4]]
    )


def test_a_shard_in_a_subfolder_is_inside(tmp_path: Path) -> None:
    """Only leaving the folder is forbidden."""
    save(tmp_path / "sub" / "one.safetensors", "a")
    write_index(tmp_path / INDEX, {"a": "sub/one.safetensors"})
    assert list(open_checkpoint(tmp_path).reader.specs) == ["a"]


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    """A tensor that a shard lacks, holds unnamed, twice or elsewhere is named; all in one error."""
    save(tmp_path / "1.safetensors", "right", "extra", "twice", "moved")
    save(tmp_path / "2.safetensors", "twice")
    path = write_index(
        tmp_path / INDEX,
        {
            "right": "1.safetensors",
            "twice": "2.safetensors",
            "moved": "2.safetensors",
            "gone": "1.safetensors",
        },
    )
    assert sorted(fault_of(tmp_path).message.splitlines()) == [
        f"{path}: tensor 'extra' in '1.safetensors' is not named by the index.",
        f"{path}: tensor 'gone' should be in '1.safetensors', which lacks it.",
        f"{path}: tensor 'moved' is in '1.safetensors' instead.",
        f"{path}: tensor 'moved' should be in '2.safetensors', which lacks it.",
        f"{path}: tensor 'twice' is in '2.safetensors' as the index says, but also in '1.safetensors'.",
    ]


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    """A download that stopped early shows in the shard's header."""
    shard = sharded(tmp_path) / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 3)
    assert fault_of(tmp_path).message == (f"{shard}: truncated: the header describes 8 bytes of data, the file has 5.")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "the index is not JSON (Expecting value, line 1, column 1)."),
        ("[]", "the index is not a JSON object."),
        ("{}", "weight_map: Field required."),
        ('{"weight_map": {}}', "the weight_map is empty."),
        ('{"weight_map": ["a"]}', "weight_map: Input should be a valid dictionary."),
        ('{"weight_map": {"a": 1, "b": null}}', "weight_map.a: Input should be a valid string."),
        ('{"weight_map": {"a": "1", "a": "2"}}', 'the index is not usable: the key "a" stands in it twice.'),
        ('{"weight_map": {"a": "1"}, "metadata": 1}', "metadata: Input should be a valid dictionary."),
    ],
)
def test_a_malformed_index_says_where(tmp_path: Path, content: str, fault: str) -> None:
    """Not JSON and JSON of another shape are told apart, with the place."""
    (tmp_path / INDEX).write_text(content)
    assert fault_of(tmp_path).message.splitlines()[0] == f"{tmp_path / INDEX}: {fault}"


def test_other_fields_of_an_index_are_ignored(tmp_path: Path) -> None:
    """transformers adds total_parameters, others add more."""
    save(tmp_path / "1.safetensors", "a")
    extra: dict[str, Any] = {
        "weight_map": {"a": "1.safetensors"},
        "metadata": {"total_parameters": 2},
        "x": [],
    }
    (tmp_path / INDEX).write_text(json.dumps(extra))
    assert list(open_checkpoint(tmp_path).reader.specs) == ["a"]
