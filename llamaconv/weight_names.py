"""How the files of a model's weights are called: by the Hub, by Meta, by Mistral, by litgpt and by lit-llama.

Folders and repositories are judged by the same names (``llamaconv.sources.directory``, ``llamaconv.hub.weight_files``),
so that what is downloaded is what is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = [
    "LITGPT",
    "LIT_LLAMA",
    "SAFETENSORS",
    "TORCH",
    "HubFormat",
    "Series",
    "is_mistral",
    "is_training_state",
    "meta_ranks",
    "missing_shards",
]

LITGPT = "lit_model.pth"
LIT_LLAMA = ("lit-llama.pth", "llama-gptq.4bit.pth", "llama-gptq.8bit.pth")

_META = re.compile(r"consolidated\.(?P<rank>[0-9]{2}|[1-9][0-9]{2,4})\.pth")
_MISTRAL = "consolidated*.safetensors"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})(?P<suffix>\.[a-z]+)")
_MOST_SHARDS = 100_000  # a file name alone must not cost memory
_TRAINING_STATE = ("training_args.*", "trainer_state.json", "optimizer.*", "scheduler.*", "scaler.pt", "rng_state*.pth")


@dataclass(frozen=True, order=True)
class Series:
    """What shards that count themselves have in common: ``model-00001-of-00002.safetensors``.

    Attributes:
        stem, count, suffix: Parts of these names.
        width: The digits of a shard's number, with the zeros before it.
    """

    stem: str
    width: int
    count: str
    suffix: str

    @classmethod
    def of(cls, name: str) -> Series | None:
        """The series that a file of this name is in; None if it is in none."""
        match = _NUMBERED.fullmatch(name)
        return cls(match["stem"], len(match["number"]), match["count"], match["suffix"]) if match else None

    def name(self, number: int) -> str:
        """What the shard ``number`` is called."""
        return f"{self.stem}-{number:0{self.width}}-of-{self.count}{self.suffix}"

    def missing(self, present: Container[str], first: int = 1) -> list[str]:
        """The names that are not ``present``, counted from ``first`` on."""
        numbers = range(first, first + min(int(self.count), _MOST_SHARDS))
        return [name for number in numbers if (name := self.name(number)) not in present]


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
        found: dict[Series, list[str]] = defaultdict(list)
        for name in names:
            series = Series.of(name)
            if series and (series.stem, series.suffix) == (self.stem, self.suffix):
                found[series].append(name)
        return found


SAFETENSORS = HubFormat("model", ".safetensors", "*.safetensors")
TORCH = HubFormat("pytorch_model", ".bin", "pytorch_model*.bin")


def meta_ranks(names: Iterable[str]) -> dict[int, str]:
    """Meta's ``consolidated.NN.pth`` among ``names``, by their tensor-parallel ranks, of which the lowest is first."""
    ranks = {int(match["rank"]): name for name in names if (match := _META.fullmatch(name))}
    return dict(sorted(ranks.items()))


def missing_shards(names: Collection[str]) -> list[str]:
    """The files that the numbers in ``names`` promise and that are not among them: of a series, and of Meta's ranks."""
    present = set(names)
    series = sorted({series for name in names if (series := Series.of(name))})
    ranks = range(max(meta_ranks(names), default=-1) + 1)
    return [
        *(name for each in series for name in each.missing(present)),
        *(name for rank in ranks if (name := f"consolidated.{rank:02}.pth") not in present),
    ]


def is_mistral(name: str) -> bool:
    """Whether Mistral calls weights so: the same model again, beside the Hub's files."""
    return fnmatchcase(name, _MISTRAL)


def is_training_state(name: str) -> bool:
    """Whether a file is there to go on with a training."""
    return any(fnmatchcase(name, pattern) for pattern in _TRAINING_STATE)
