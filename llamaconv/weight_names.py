"""How the files of a model's weights are called: by the Hub, by Meta, by Mistral, by litgpt and by lit-llama.

Folders and repositories are judged by the same names (``llamaconv.sources.directory``, ``llamaconv.hub.weight_files``),
so that what is downloaded is what is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain, islice

__all__ = [
    "LITGPT",
    "LIT_LLAMA",
    "SAFETENSORS",
    "TORCH",
    "HubFormat",
    "Missing",
    "Series",
    "is_mistral",
    "is_training_state",
    "meta_ranks",
    "missing_shards",
    "series_among",
]

LITGPT = "lit_model.pth"
LIT_LLAMA = ("lit-llama.pth", "llama-gptq.4bit.pth", "llama-gptq.8bit.pth")

_META = re.compile(r"consolidated\.(?P<rank>[0-9]{2}|[1-9][0-9]{2,4})\.pth")
_MISTRAL = "consolidated*.safetensors"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})(?P<suffix>\.[a-z]+)")
_MOST_NAMED = 100
_TRAINING_STATE = ("training_args.*", "trainer_state.json", "optimizer.*", "scheduler.*", "scaler.pt", "rng_state*.pth")


@dataclass(frozen=True, order=True)
class Series:
    """What shards that count themselves have in common: ``model-00001-of-00002.safetensors``, ``model-1-of-2.bin``.

    Attributes:
        stem, count, suffix: Parts of these names.
        width: The digits of a shard's number, with the zeros before it; 1 without any.
    """

    stem: str
    width: int
    count: str
    suffix: str

    @classmethod
    def of(cls, name: str) -> Series | None:
        """The series that a file of this name is in, as far as the name alone tells; None if it is in none."""
        match = _NUMBERED.fullmatch(name)
        return cls(match["stem"], len(match["number"]), match["count"], match["suffix"]) if match else None

    def name(self, number: int) -> str:
        """What the shard ``number`` is called."""
        return f"{self.stem}-{number:0{self.width}}-of-{self.count}{self.suffix}"

    def missing(self, present: Iterable[str]) -> tuple[Iterator[str], int]:
        """The shards from 1 to the count that are not among ``present``, of this series; and how many there are."""
        count = int(self.count)
        there = {number for name in present if 1 <= (number := int(_digits(name))) <= count}
        return (self.name(number) for number in range(1, count + 1) if number not in there), count - len(there)


@dataclass(frozen=True)
class Missing:
    """Files that should be there. A name alone can promise millions: only the first are named.

    Attributes:
        names: The first of them.
        count: Of all.
    """

    names: tuple[str, ...]
    count: int

    def told(self, sentence: Callable[[str], str], most: int = _MOST_NAMED) -> str:
        """``sentence`` of each name, one to a line; past ``most`` of them the rest are counted, not shown."""
        lines = [sentence(name) for name in self.names[:most]]
        if self.count > len(lines):
            lines.append(f"… and {self.count - len(lines)} more.")
        return "\n".join(lines)


def series_among(names: Iterable[str]) -> dict[Series, list[str]]:
    """The numbered files among ``names``, by the series that they are in.

    A number may have zeros before it or not: ``model-10-of-12.bin`` is in a series with ``model-01-of-12.bin``, or else
    with ``model-1-of-12.bin``.
    """
    numbered = [(name, series) for name in names if (series := Series.of(name))]
    padded, plain = defaultdict[Series, set[int]](set), defaultdict[Series, set[int]](set)
    for name, series in numbered:
        zeros = len(digits := _digits(name)) > 1 and digits.startswith("0")
        (padded if zeros else plain)[replace(series, width=1)].add(series.width)
    found: dict[Series, list[str]] = defaultdict(list)
    for name, series in numbered:
        bare = replace(series, width=1)
        fitting = [width for width in padded.get(bare, ()) if width <= series.width]  # a long number needs no zeros
        alone = {width for width in plain.get(bare, ()) if not any(zeros <= width for zeros in padded.get(bare, ()))}
        width = max(fitting) if fitting else 1 if len(alone) > 1 else series.width
        found[replace(series, width=width)].append(name)
    return dict(found)


def _digits(name: str) -> str:
    """A shard's number as it stands in its name."""
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return match["number"]


@dataclass(frozen=True)
class HubFormat:
    """How the Hub calls weights of one format: ``model.safetensors``, or an index and a series of shards.

    Attributes:
        stem, suffix: Of these names.
        glob: All names that an index of this format can mean; ``.bin`` alone does not say that there are weights in it.
    """

    stem: str
    suffix: str
    glob: str

    @property
    def single(self) -> str:
        """The file that has all tensors."""
        return self.stem + self.suffix

    @property
    def index(self) -> str:
        """The file that says which shard has which tensor."""
        return f"{self.single}.index.json"

    def shards(self, names: Iterable[str]) -> dict[Series, list[str]]:
        """The numbered files of this format among ``names``, by the series that they are in."""
        series = series_among(names)
        own = (self.stem, self.suffix)
        return {each: members for each, members in series.items() if (each.stem, each.suffix) == own}


SAFETENSORS = HubFormat("model", ".safetensors", "*.safetensors")
TORCH = HubFormat("pytorch_model", ".bin", "pytorch_model*.bin")


def meta_ranks(names: Iterable[str]) -> dict[int, str]:
    """Meta's ``consolidated.NN.pth`` among ``names``, by their tensor-parallel ranks, of which the lowest is first."""
    ranks = {int(match["rank"]): name for name in names if (match := _META.fullmatch(name))}
    return dict(sorted(ranks.items()))


def missing_shards(names: Iterable[str]) -> Missing:
    """The files that the numbers in ``names`` promise and that are not among them: of a series, and of Meta's ranks."""
    present = set(names)
    series = series_among(present)
    missing = [each.missing(series[each]) for each in sorted(series)]
    ranks = meta_ranks(present)
    last = max(ranks, default=-1)
    gaps = (f"consolidated.{rank:02}.pth" for rank in range(last + 1) if rank not in ranks)
    missing.append((gaps, last + 1 - len(ranks)))
    names_missing = chain.from_iterable(names for names, _ in missing)
    return Missing(tuple(islice(names_missing, _MOST_NAMED)), sum(count for _, count in missing))


def is_mistral(name: str) -> bool:
    """Whether Mistral calls weights so: the same model again, beside the Hub's files."""
    return fnmatchcase(name, _MISTRAL)


def is_training_state(name: str) -> bool:
    """Whether a file is there to go on with a training."""
    return any(fnmatchcase(name, pattern) for pattern in _TRAINING_STATE)
