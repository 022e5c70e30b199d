"""Which files of a repository are a model's weights, once, decided by their names.

The order is that in which a folder's weights are chosen (llamaconv.sources.directory), so that what was downloaded is
what is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from llamaconv.errors import HubError

__all__ = ["chosen_weights", "format_of", "is_adapter", "is_index", "is_training_state"]

_FORMATS = {
    ".safetensors": "safetensors",
    ".bin": "torch",
    ".pth": "torch",
    ".pt": "torch",
    ".ckpt": "torch",
    ".gguf": "GGUF",
    ".ggml": "GGML",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".onnx_data": "ONNX",
    ".ot": "Rust",
    ".npz": "NumPy",
    ".tflite": "TensorFlow Lite",
    ".mlmodel": "Core ML",
    ".llamafile": "llamafile",
}
_TRAINING_STATE = (
    "training_args.*",
    "trainer_state.json",
    "optimizer.*",
    "scheduler.*",
    "scaler.pt",
    "rng_state*.pth",
)
_LITGPT = "lit_model.pth"
_LIT_LLAMA = ("lit-llama.pth", "llama-gptq.4bit.pth", "llama-gptq.8bit.pth")
_META = re.compile(r"consolidated\.(?P<rank>[0-9]{2}|[1-9][0-9]{2,4})\.pth")
_MISTRAL = "consolidated*.safetensors"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})(?P<suffix>\.[a-z]+)")
_MOST_SHARDS = 100_000  # a file name alone must not cost memory
_MOST_SHOWN = 10


_WeightsOf = Callable[[str, Sequence[str]], list[str]]
"""Of a repository, called so, with files called so at its top: those of one kind of weights, if it has them."""


@dataclass(frozen=True)
class _Format:
    """How the Hub calls weights of one format: ``model.safetensors``, ``model-00001-of-00002.safetensors``.

    Attributes:
        stem, suffix: Of these names.
        glob: All names that an index of this format can mean; ``.bin`` alone does not say that there are weights in it.
    """

    stem: str
    suffix: str
    glob: str

    @property
    def single(self) -> str:
        return self.stem + self.suffix

    @property
    def index(self) -> str:
        return f"{self.single}.index.json"


_SAFETENSORS = _Format("model", ".safetensors", "*.safetensors")
_TORCH = _Format("pytorch_model", ".bin", "pytorch_model*.bin")


@dataclass(frozen=True)
class _Series:
    """What shards that count themselves have in common: ``model-00001-of-00002.safetensors``."""

    stem: str
    width: int
    count: str
    suffix: str

    def name(self, number: int) -> str:
        return f"{self.stem}-{number:0{self.width}}-of-{self.count}{self.suffix}"

    def missing(self, present: Iterable[str], first: int = 1) -> list[str]:
        """The names that are not ``present``, counted from ``first`` on."""
        there = set(present)
        numbers = range(first, first + min(int(self.count), _MOST_SHARDS))
        return [name for number in numbers if (name := self.name(number)) not in there]


def format_of(name: str) -> str | None:
    """The format of the weights that a file of this name has ("GGUF"); None if it has none."""
    return next((label for suffix, label in _FORMATS.items() if name.endswith(suffix)), None)


def is_index(name: str) -> bool:
    """Whether a file tells which shard has which tensor, of whatever weights."""
    return fnmatchcase(name, "*.index.json") or fnmatchcase(name, "*.index.*.json")


def is_training_state(name: str) -> bool:
    """Whether a file is there to go on with a training."""
    return any(fnmatchcase(name, pattern) for pattern in _TRAINING_STATE)


def is_adapter(name: str) -> bool:
    """Whether a file belongs to an adapter, which is no model."""
    return name.startswith("adapter")


def chosen_weights(repository: str, names: Iterable[str]) -> list[str]:
    """The weights among ``names``, files at the top of a repository, with their index; none if there are none.

    They are the first of these: the shards of ``model.safetensors.index.json``; ``model.safetensors``; other
    ``*.safetensors``, of which a variant (``model.fp16.safetensors``) only if there is nothing else; Mistral's
    ``consolidated*.safetensors``; the shards of ``pytorch_model.bin.index.json``; ``pytorch_model.bin``; Meta's
    ``consolidated.NN.pth``; litgpt's ``lit_model.pth``; lit-llama's; shards of ``pytorch_model`` without an index; a
    variant of ``pytorch_model.bin``. Adapters and the state of a training are no weights.

    Raises:
        HubError: Not all are there that belong together, or there are several variants and nothing else.
    """
    candidates = [name for name in names if not is_training_state(name) and not is_adapter(name)]
    return next((chosen for kind in _KINDS if (chosen := kind(repository, candidates))), [])


def _indexed(form: _Format, repository: str, names: Sequence[str]) -> list[str]:
    """An index and its shards: which these are stands in the index, so those that it can mean."""
    if form.index not in names:
        return []
    files = [name for name in names if fnmatchcase(name, form.glob)]
    series = {key: members for key, members in _series(files).items() if key.stem == form.stem}
    if not series:
        plain = [name for name in files if not fnmatchcase(name, _MISTRAL) and not _is_variant(form, name)]
        return [form.index, *plain] if plain else []
    # Shards of an earlier upload may be left beside them. An index may count from zero.
    gaps = {key: key.missing(members, first=0 if key.name(0) in members else 1) for key, members in series.items()}
    whole = [name for key, members in series.items() if not gaps[key] for name in members]
    if not whole:
        raise _incomplete(repository, [name for missing in gaps.values() for name in missing])
    return [form.index, *whole]


def _alone(choices: Sequence[str], repository: str, names: Sequence[str]) -> list[str]:
    """The one of ``choices`` that is there."""
    found = [name for name in choices if name in names]
    return _one_of(repository, {name: [name] for name in found})


def _other_safetensors(repository: str, names: Sequence[str]) -> list[str]:
    files = [name for name in names if name.endswith(_SAFETENSORS.suffix) and not fnmatchcase(name, _MISTRAL)]
    plain = [name for name in files if not _is_variant(_SAFETENSORS, name)]
    return _whole(repository, plain) if plain else _variant(_SAFETENSORS, repository, files)


def _mistral(repository: str, names: Sequence[str]) -> list[str]:
    return _whole(repository, [name for name in names if fnmatchcase(name, _MISTRAL)])


def _meta(repository: str, names: Sequence[str]) -> list[str]:
    ranks = {int(match["rank"]): name for name in names if (match := _META.fullmatch(name))}
    missing = [f"consolidated.{rank:02}.pth" for rank in range(max(ranks, default=-1) + 1) if rank not in ranks]
    if missing:
        raise _incomplete(repository, missing)
    return list(ranks.values())


def _torch_shards(repository: str, names: Sequence[str]) -> list[str]:
    series = _series(name for name in names if name.endswith(_TORCH.suffix))
    shards = [name for key, members in series.items() if key.stem == _TORCH.stem for name in members]
    return _whole(repository, shards)


def _variant(form: _Format, repository: str, names: Sequence[str]) -> list[str]:
    """Weights in another precision (``model.fp16.safetensors``), if there is only one."""
    files = [name for name in names if _is_variant(form, name)]
    variants: dict[str, list[str]] = defaultdict(list)
    for name in files:
        match = _NUMBERED.fullmatch(name)
        variants[f"{match['stem']}{match['suffix']}" if match else name].append(name)
    return _whole(repository, _one_of(repository, variants))


def _is_variant(form: _Format, name: str) -> bool:
    return name.startswith(f"{form.stem}.") and name.endswith(form.suffix) and name != form.single


_KINDS: tuple[_WeightsOf, ...] = (
    partial(_indexed, _SAFETENSORS),
    partial(_alone, (_SAFETENSORS.single,)),
    _other_safetensors,
    _mistral,
    partial(_indexed, _TORCH),
    partial(_alone, (_TORCH.single,)),
    _meta,
    partial(_alone, (_LITGPT,)),
    partial(_alone, _LIT_LLAMA),
    _torch_shards,
    partial(_variant, _TORCH),
)


def _series(names: Iterable[str]) -> dict[_Series, list[str]]:
    """The shards among ``names`` that count themselves, by what they have in common."""
    found: dict[_Series, list[str]] = defaultdict(list)
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            found[_Series(match["stem"], len(match["number"]), match["count"], match["suffix"])].append(name)
    return found


def _whole(repository: str, names: list[str]) -> list[str]:
    """All of ``names``, which must be complete where they are numbered."""
    if missing := [name for key, members in _series(names).items() for name in key.missing(members)]:
        raise _incomplete(repository, missing)
    return names


def _one_of(repository: str, models: Mapping[str, list[str]]) -> list[str]:
    if len(models) > 1:
        raise HubError(
            f"{repository} has several models: {', '.join(models)}.",
            hint="Choose one of them with --include, and its configuration with it.",
            repository=repository,
        )
    return next(iter(models.values()), [])


def _incomplete(repository: str, missing: Sequence[str]) -> HubError:
    lines = [f"{repository} is incomplete: the shard {name!r} is missing." for name in missing[:_MOST_SHOWN]]
    if len(missing) > _MOST_SHOWN:
        lines.append(f"… and {len(missing) - _MOST_SHOWN} more.")
    hint = "Take another revision; or name the files that you want all the same."
    return HubError("\n".join(lines), hint=hint, repository=repository)
