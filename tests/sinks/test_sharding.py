from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.sinks.sharding import Shard, index, index_filename, shard
from llamaconv.tensors import TensorSpec


def spec(name: str, nbytes: int) -> TensorSpec:
    return TensorSpec(name, (nbytes,), torch.uint8)


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=20)


def test_literal_shards_and_index() -> None:
    """Runs are filled in order, a tensor over the limit stands alone, the index is sorted by name."""
    shards = shard([spec("d", 4), spec("b", 6), spec("c", 11), spec("a", 3)], max_bytes=10)
    assert shards == (
        Shard("model-00001-of-00003.safetensors", (spec("d", 4), spec("b", 6))),
        Shard("model-00002-of-00003.safetensors", (spec("c", 11),)),
        Shard("model-00003-of-00003.safetensors", (spec("a", 3),)),
    )
    assert index_filename(shards) == "model.safetensors.index.json"
    assert json.dumps(index(shards)) == (
        '{"metadata": {"total_size": 24}, "weight_map": {'
        '"a": "model-00003-of-00003.safetensors", "b": "model-00001-of-00003.safetensors", '
        '"c": "model-00002-of-00003.safetensors", "d": "model-00001-of-00003.safetensors"}}'
    )


def test_torch_files_are_named_and_indexed_as_transformers_did() -> None:
    """Stem and suffix name the files, and the index after them."""
    shards = shard([spec("a", 4), spec("b", 6)], max_bytes=6, stem="pytorch_model", suffix=".bin")
    assert [part.filename for part in shards] == [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    ]
    assert index_filename(shards) == "pytorch_model.bin.index.json"
    assert index(shards)["weight_map"] == {
        "a": "pytorch_model-00001-of-00002.bin",
        "b": "pytorch_model-00002-of-00002.bin",
    }
    single = shard([spec("a", 4)], max_bytes=6, stem="pytorch_model", suffix=".bin")
    assert ([part.filename for part in single], index_filename(single)) == (["pytorch_model.bin"], None)


def test_files_that_are_not_numbered_have_no_index() -> None:
    """Those of tensor-parallel ranks hold the same names, which an index could not tell apart."""
    ranks = [Shard(f"consolidated.{rank:02d}.pth", (spec(f"{rank:02d}/a", 4),), f"{rank:02d}/") for rank in range(2)]
    assert index_filename(ranks) is None
    assert index_filename([]) is None


def test_one_shard_has_no_number_and_no_index() -> None:
    """What fits is a single file; another stem names it."""
    shards = shard([spec("a", 4), spec("b", 6)], max_bytes=10, stem="adapter")
    assert [part.filename for part in shards] == ["adapter.safetensors"]
    assert shards[0].nbytes == 10
    assert index_filename(shards) is None
    assert shard([], max_bytes=10) == ()


@given(SIZES, st.integers(1, 30))
def test_shards_keep_order_and_limit(sizes: list[int], limit: int) -> None:
    """Joined, the shards are the specs; none is over the limit unless it holds one tensor."""
    specs = [spec(f"t{i}", size) for i, size in enumerate(sizes)]
    shards = shard(specs, limit)
    assert [one for part in shards for one in part.specs] == specs
    for part, after in pairwise(shards):
        assert part.nbytes + after.specs[0].nbytes > limit
    assert all(part.nbytes <= limit or len(part.specs) == 1 for part in shards)


@given(SIZES)
def test_shards_are_hugging_faces(sizes: list[int]) -> None:
    """Where no tensor is over the limit, files and index are those of huggingface_hub."""
    specs = {f"t{i}": spec(f"t{i}", size) for i, size in enumerate(sizes)}
    theirs = split_state_dict_into_shards_factory(
        specs,
        get_storage_size=lambda one: one.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=30,
    )
    shards = shard(specs.values(), 30)
    assert {part.filename: [one.name for one in part.specs] for part in shards} == theirs.filename_to_tensors
    assert index(shards) == {"metadata": theirs.metadata, "weight_map": theirs.tensor_to_filename}


def test_contradictions_are_ours() -> None:
    """A name twice or a limit of nothing is a mistake of the caller."""
    with pytest.raises(ValueError, match=r"^two tensors are called 'a'$"):
        shard([spec("a", 1), spec("a", 2)], 10)
    with pytest.raises(ValueError, match=r"^max_bytes must be positive, not 0$"):
        shard([], 0)
