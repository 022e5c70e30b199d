from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from llamaconv.errors import HubError
from llamaconv.hub.result import Skipped
from llamaconv.hub.selection import select
from tests.hub.listings import choose_from, chosen, listing_of, refusal, shards

INDEX, TORCH_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
UNPADDED = [f"model-{number}-of-61.safetensors" for number in range(1, 62)]
BESIDE = ["README.md", "config.json"]
INCOMPLETE = "Take another revision; or name the files that you want all the same."


@pytest.mark.parametrize(
    ("named", "leftover"),
    [
        (shards("model", 3), []),
        (shards("model", 2), [*shards("model", 3), "model.safetensors", "pytorch_model.bin", TORCH_INDEX]),
        (shards("model", 3), shards("model", 2)),
        (UNPADDED, []),
        (shards("model.safetensors", 3), []),
        (shards("model", 3, first=0)[:2], ["model-00002-of-00003.safetensors"]),
        (["model-00000-of-00002.safetensors", *shards("model", 2)], []),
        ([*shards("model", 2), "model_extra_tensors.safetensors"], ["other.safetensors"]),
        ([*shards("model", 2), "mtp.safetensors"], []),
        (["layer-0.safetensors", "layer-1.safetensors", "model-non-layer.safetensors"], []),
        (["sub/deep/one.safetensors", "two.safetensors"], ["sub/other.safetensors"]),
        (["consolidated.safetensors"], ["model.safetensors"]),
        (["model.safetensors"], shards("model", 4)[1:]),
        (["adapter_merged.safetensors", "optimizer.safetensors"], []),
    ],
)
def test_an_index_says_which_files_belong_to_it(named: Sequence[str], leftover: Sequence[str]) -> None:
    """Exactly what it names is taken, however it is called and wherever it leads; what else there is, is not."""
    selection = choose_from({*named, *leftover, *BESIDE, INDEX}, indexes={INDEX: named, TORCH_INDEX: ["x.bin"]})
    assert chosen(selection) == sorted([*named, INDEX, "config.json"])


def test_torch_files_have_an_index_too() -> None:
    """It is asked where there are no safetensors; an index of what is not chosen is not read."""
    named = [*shards("pytorch_model", 3, ".bin", first=0), "more.bin"]
    names = {TORCH_INDEX, *named, "pytorch_model.bin", *shards("pytorch_model", 2, ".bin")}
    assert chosen(choose_from(names, indexes={TORCH_INDEX: named})) == sorted([TORCH_INDEX, *named])
    assert chosen(choose_from({*names, "model.safetensors"}, indexes={})) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        ([INDEX, "model.safetensors"], ["model.safetensors"]),
        ([INDEX, "model.safetensors", *shards("model", 2)[:1]], ["model.safetensors"]),
        ([INDEX, "pytorch_model.bin"], ["pytorch_model.bin"]),
        ([INDEX, "consolidated.safetensors"], ["consolidated.safetensors"]),
        ([INDEX, TORCH_INDEX, "pytorch_model.bin"], ["pytorch_model.bin"]),
    ],
)
def test_an_index_left_behind(names: Sequence[str], weights: Sequence[str]) -> None:
    """Where its files are gone and the model is there without them, it is skipped, with the reason."""
    selection = choose_from(names, indexes={INDEX: shards("model", 2), TORCH_INDEX: shards("pytorch_model", 3, ".bin")})
    assert chosen(selection) == weights
    left = tuple(name for name in names if name.endswith(".index.json"))
    what = left[0] if len(left) == 1 else f"2 files ({INDEX}, {TORCH_INDEX})"
    assert selection.skipped[-1] == Skipped(what, "no index of what is there", left)


@pytest.mark.parametrize(
    ("names", "named", "missing"),
    [
        ([INDEX, *shards("model", 3)[::2]], shards("model", 3), "'model-00002-of-00003.safetensors'"),
        ([INDEX, *shards("model", 2)], ["other.safetensors"], "'other.safetensors'"),
        ([INDEX, "sub/x.safetensors"], ["x.safetensors"], "'x.safetensors'"),
        ([INDEX, "x.safetensors"], ["../x.safetensors", "x.safetensors"], "'../x.safetensors'"),
        ([INDEX, "x.safetensors"], ["/x.safetensors"], "'/x.safetensors'"),
        ([INDEX, "x.safetensors"], ["./x.safetensors"], "'./x.safetensors'"),
        ([INDEX, "x.safetensors"], ["x\x1b[2J.safetensors"], r"'x\x1b[2J.safetensors'"),
        ([INDEX, "x.safetensors"], ["x" * 1000 + ".safetensors"], "'" + "x" * 299),
        ([INDEX], ["x.safetensors"], "'x.safetensors'"),
    ],
)
def test_an_index_that_names_what_is_not_there(names: Sequence[str], named: Sequence[str], missing: str) -> None:
    """What it names and the repository does not have, or cannot, is told as missing."""
    error = refusal(names, indexes={INDEX: named})
    assert error.message == f"org/name is incomplete: the shard {missing} is missing."
    assert (error.hint, error.exit_code) == (INCOMPLETE, 4)


def test_ten_missing_shards_are_shown() -> None:
    """The others are counted."""
    lines = refusal([INDEX, UNPADDED[0]], indexes={INDEX: UNPADDED}).message.splitlines()
    assert len(lines) == 11
    assert lines[10] == "… and 50 more."


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"<html>", "it is not JSON (Expecting value, line 1, column 1)"),
        (b"[]", "it is not a JSON object"),
        (b"{}", "its weight_map is null, not an object"),
        (b'{"weight_map": ["x"]}', 'its weight_map is ["x"], not an object'),
        (b'{"weight_map": {}}', "its weight_map is empty"),
        (b'{"weight_map": {"a": "x.safetensors", "b": 3}}', 'its shard of "b" is 3, not a name'),
        (b'{"weight_map": {"a": "x", "a": "y"}}', 'it is not usable: the key "a" stands in it twice'),
        (b'{"weight_map": {"a": "config.json"}}', 'its shard of "a" is "config.json", no .safetensors file'),
        (b'{"weight_map": {"a": "%s"}}' % INDEX.encode(), f'its shard of "a" is "{INDEX}", no .safetensors file'),
    ],
)
def test_an_index_that_is_none(data: bytes, fault: str) -> None:
    """Anything but an object whose weight_map has a name for each tensor is refused, with file and fault."""
    with pytest.raises(HubError) as caught:
        select(listing_of([INDEX, "x.safetensors"]), (), (), (), lambda _: data)
    assert caught.value.message == f"org/name: {INDEX} cannot be used: {fault}."
    assert caught.value.hint == INCOMPLETE
    selection = select(listing_of([INDEX, "model.safetensors"]), (), (), (), lambda _: data)
    assert chosen(selection) == ["model.safetensors"]  # which needs none
    assert selection.skipped == (Skipped(INDEX, "no index of what is there", (INDEX,)),)


def test_what_was_asked_for_needs_no_index() -> None:
    """Names and patterns are taken as they are: no index is read."""
    names = [INDEX, *shards("model", 2)]
    assert chosen(choose_from(names, [INDEX])) == [INDEX]
    assert chosen(choose_from(names, (), ["*-00002-*"])) == [names[2]]
    assert chosen(choose_from(names, (), (), ["*-00002-*"])) == [names[1], INDEX]


def test_an_index_may_have_more_than_its_map() -> None:
    """Its metadata, whatever they are, do not matter here."""
    data = json.dumps({"metadata": ["?"], "weight_map": {"a": "x.safetensors"}, "more": 1}).encode()
    selection = select(listing_of([INDEX, "x.safetensors"]), (), (), (), lambda _: data)
    assert chosen(selection) == [INDEX, "x.safetensors"]
