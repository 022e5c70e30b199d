from __future__ import annotations

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from llamaconv.weight_names import (
    SAFETENSORS,
    TORCH,
    HubFormat,
    Series,
    is_mistral,
    is_training_state,
    meta_ranks,
    missing_shards,
)


def test_the_hubs_names_are_those_of_transformers() -> None:
    """One file and an index, as safetensors and as torch files."""
    assert (SAFETENSORS.single, SAFETENSORS.index) == (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    assert (TORCH.single, TORCH.index) == (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


@pytest.mark.parametrize("form", [SAFETENSORS, TORCH])
def test_shards_that_huggingface_hub_names_are_one_whole_series(form: HubFormat) -> None:
    """Its files are in one series, of which none is missing; without one of them that one is."""
    tensors = {letter: torch.zeros(2, 3) for letter in "abcde"}
    pattern = f"{form.stem}{{suffix}}{form.suffix}"
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=24)
    names = list(split.filename_to_tensors)
    assert form.shards([*names, form.single, "config.json"]) == {Series(form.stem, 5, "00005", form.suffix): names}
    assert missing_shards(names) == []
    assert missing_shards([*names[:3], names[4]]) == [names[3]]


def test_shards_of_other_models_are_not_the_hubs() -> None:
    """The stem and the suffix are the format's own, and what counts are numbers."""
    names = ["x-00001-of-00001.safetensors", "model.fp16-00001-of-00001.safetensors", "model-00001-of-00001.bin"]
    assert SAFETENSORS.shards([*names, "model-x-of-y.safetensors", "model-00001-of-00001.fp16.safetensors"]) == {}
    assert TORCH.shards(["pytorch_model-fp16-00001-of-00001.bin"]) == {}


SERIES = st.builds(
    lambda stem, width, count: Series(stem, width, f"{count:0{width}}", ".bin"),
    st.sampled_from(["model", "a-b", "x-1-of-2", ""]),
    st.integers(2, 9),
    st.integers(1, 40),
)


@given(st.data(), st.sets(SERIES, min_size=1, max_size=3))
def test_what_is_there_and_what_is_missing_is_all(data: st.DataObject, several: set[Series]) -> None:
    """Of each series that has a file, the others are missing, in the order of series and numbers."""
    there, missing = [], []
    for series in sorted(several):
        names = [series.name(number) for number in range(1, int(series.count) + 1)]
        assert {Series.of(name) for name in names} == {series}
        present = data.draw(st.sets(st.sampled_from(names), min_size=1))
        there += [name for name in names if name in present]
        missing += [name for name in names if name not in present]
    assert missing_shards(data.draw(st.permutations(there))) == missing


def test_a_series_may_be_counted_from_zero() -> None:
    """Where that is known, as from an index, the last number is one less."""
    series = Series("model", 5, "00003", ".safetensors")
    assert series.missing({series.name(0)}, first=0) == [series.name(1), series.name(2)]


@given(st.sets(st.integers(0, 130)))
def test_metas_ranks_are_counted_from_zero_to_the_last(ranks: set[int]) -> None:
    """They come in the order of their numbers, of two digits or more; each below the last must be there."""
    names = [f"consolidated.{rank:02}.pth" for rank in ranks]
    others = ["consolidated.0.pth", "consolidated.007.pth", "consolidated.00.pth.tmp", "consolidated.safetensors"]
    assert list(meta_ranks([*names, *others]).items()) == [(n, f"consolidated.{n:02}.pth") for n in sorted(ranks)]
    gaps = [rank for rank in range(max(ranks, default=0)) if rank not in ranks]
    assert missing_shards([*names, *others]) == [f"consolidated.{rank:02}.pth" for rank in gaps]


def test_a_name_alone_costs_no_memory() -> None:
    """A file that claims to be one of 999,999,999 promises no more than 100,000."""
    assert len(missing_shards(["model-000000001-of-999999999.safetensors"])) == 99_999
    assert missing_shards(["model-1-of-9999999999.safetensors", "consolidated.100000.pth"]) == []


@pytest.mark.parametrize(
    ("name", "training", "mistral"),
    [
        ("training_args.bin", True, False),
        ("trainer_state.json", True, False),
        ("optimizer.pt", True, False),
        ("optimizer.safetensors", True, False),
        ("scheduler.pt", True, False),
        ("scaler.pt", True, False),
        ("rng_state_0.pth", True, False),
        ("consolidated.safetensors", False, True),
        ("consolidated-00001-of-00002.safetensors", False, True),
        ("consolidated.00.pth", False, False),
        ("model.safetensors", False, False),
        ("my_optimizer.pt", False, False),
    ],
)
def test_names_that_are_no_model_or_the_same_once_more(name: str, training: bool, mistral: bool) -> None:
    """A trainer's files are told from weights, and Mistral's own from the Hub's."""
    assert (is_training_state(name), is_mistral(name)) == (training, mistral)
