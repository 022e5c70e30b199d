"""Which files of a repository are a model's weights, once, decided by their names and by the index among them.

The order is that in which a folder's weights are chosen (llamaconv.sources.directory), so that what was downloaded is
what is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain

from llamaconv.errors import HubError
from llamaconv.hub.repository import Listing, RemoteFile
from llamaconv.hub.weight_index import shards_of
from llamaconv.weight_names import (
    LIT_LLAMA,
    LITGPT,
    SAFETENSORS,
    TORCH,
    HubFormat,
    Missing,
    Series,
    is_mistral,
    is_training_state,
    meta_ranks,
    missing_shards,
)

__all__ = ["Weights", "chosen_weights", "format_of", "is_adapter", "is_index"]

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
_MOST_SHOWN = 10


@dataclass(frozen=True)
class Weights:
    """The weights of a repository.

    Attributes:
        names: Of the files, with their index; none if there are none.
        stale: Indexes that are not of these weights, though called as if they were: what they name is not there.
    """

    names: tuple[str, ...]
    stale: tuple[str, ...] = ()


class _Searched:
    """The repository in which weights are looked for.

    Attributes:
        name: Of the repository.
        stale: Of each index that names files which are not there, these files.
    """

    def __init__(self, listing: Listing, read: Callable[[RemoteFile], bytes]) -> None:
        self.name = listing.repository
        self.stale: dict[str, list[str]] = {}
        self._listing = listing
        self._read = read
        self._files = {file.name: file for file in listing}

    def shards(self, form: HubFormat, *, needed: bool) -> list[str] | None:
        """The names in the index of a format; None if it is malformed, which is an error if it is ``needed``."""
        file = self._files[form.index]
        data = self._read(file)
        try:
            return shards_of(self._listing, file, data, form.suffix)
        except HubError:
            if needed:
                raise
            return None

    def lacks(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` that are no files of it, wherever they lead."""
        return [name for name in names if name not in self._files]


_WeightsOf = Callable[[_Searched, Sequence[str]], list[str]]
"""Of a repository, with files called so at its top: those of one kind of weights, if it has them."""


def format_of(name: str) -> str | None:
    """The format of the weights that a file of this name has ("GGUF"); None if it has none."""
    return next((label for suffix, label in _FORMATS.items() if name.endswith(suffix)), None)


def is_index(name: str) -> bool:
    """Whether a file tells which shard has which tensor, of whatever weights."""
    return fnmatchcase(name, "*.index.json") or fnmatchcase(name, "*.index.*.json")


def is_adapter(name: str) -> bool:
    """Whether a file belongs to an adapter, which is no model."""
    return name.startswith("adapter")


def chosen_weights(listing: Listing, read: Callable[[RemoteFile], bytes]) -> Weights:
    """The weights of the model at the top of a repository.

    They are the first of these: what ``model.safetensors.index.json`` names; ``model.safetensors``; other
    ``*.safetensors``, of which a variant (``model.fp16.safetensors``) only if there is nothing else; Mistral's
    ``consolidated*.safetensors``; what ``pytorch_model.bin.index.json`` names; ``pytorch_model.bin``; Meta's
    ``consolidated.NN.pth``; litgpt's ``lit_model.pth``; lit-llama's; shards of ``pytorch_model`` without an index; a
    variant of ``pytorch_model.bin``. Adapters and the state of a training are no weights. An index of which files are
    missing is passed over where the single file is there, or nothing else of its format.

    Args:
        listing: What there is.
        read: Gives the contents of an index.

    Raises:
        HubError: Not all are there that belong together, or there are several variants and nothing else; an index is
            none. Or what ``read`` raises.
    """
    top = [file.name for file in listing if "/" not in file.name]
    candidates = [name for name in top if not is_training_state(name) and not is_adapter(name)]
    searched = _Searched(listing, read)
    chosen = next((chosen for kind in _KINDS if (chosen := kind(searched, candidates))), [])
    if not chosen and searched.stale:
        raise _incomplete(searched.name, _all_missing(list(chain.from_iterable(searched.stale.values()))))
    return Weights(tuple(chosen), tuple(searched.stale))


def _indexed(form: HubFormat, searched: _Searched, names: Sequence[str]) -> list[str]:
    """An index and what it names, which may lie in folders."""
    if form.index not in names:
        return []
    shards = searched.shards(form, needed=form.single not in names)
    if shards is None:
        searched.stale[form.index] = []
        return []
    missing = searched.lacks(shards)
    if not missing:
        return [form.index, *shards]
    others = any(fnmatchcase(name, form.glob) and not is_mistral(name) for name in names)
    if form.single not in names and (others or len(missing) < len(shards)):
        raise _incomplete(searched.name, _all_missing(missing))
    searched.stale[form.index] = missing
    return []


def _alone(choices: Sequence[str], searched: _Searched, names: Sequence[str]) -> list[str]:
    """The one of ``choices`` that is there."""
    found = [name for name in choices if name in names]
    return _one_of(searched.name, {name: [name] for name in found})


def _other_safetensors(searched: _Searched, names: Sequence[str]) -> list[str]:
    files = [name for name in names if name.endswith(SAFETENSORS.suffix) and not is_mistral(name)]
    plain = [name for name in files if not _is_variant(SAFETENSORS, name)]
    return _whole(searched.name, plain) if plain else _variant(SAFETENSORS, searched, files)


def _mistral(searched: _Searched, names: Sequence[str]) -> list[str]:
    return _whole(searched.name, [name for name in names if is_mistral(name)])


def _meta(searched: _Searched, names: Sequence[str]) -> list[str]:
    return _whole(searched.name, list(meta_ranks(names).values()))


def _torch_shards(searched: _Searched, names: Sequence[str]) -> list[str]:
    return _whole(searched.name, list(chain.from_iterable(TORCH.shards(names).values())))


def _variant(form: HubFormat, searched: _Searched, names: Sequence[str]) -> list[str]:
    """Weights in another precision (``model.fp16.safetensors``), if there is only one."""
    files = [name for name in names if _is_variant(form, name)]
    variants: dict[str, list[str]] = defaultdict(list)
    for name in files:
        series = Series.of(name)
        variants[series.stem + series.suffix if series else name].append(name)
    return _whole(searched.name, _one_of(searched.name, variants))


def _is_variant(form: HubFormat, name: str) -> bool:
    return name.startswith(f"{form.stem}.") and name.endswith(form.suffix) and name != form.single


_KINDS: tuple[_WeightsOf, ...] = (
    partial(_indexed, SAFETENSORS),
    partial(_alone, (SAFETENSORS.single,)),
    _other_safetensors,
    _mistral,
    partial(_indexed, TORCH),
    partial(_alone, (TORCH.single,)),
    _meta,
    partial(_alone, (LITGPT,)),
    partial(_alone, LIT_LLAMA),
    _torch_shards,
    partial(_variant, TORCH),
)


def _whole(repository: str, names: list[str]) -> list[str]:
    """All of ``names``, which must be complete where they are numbered."""
    missing = missing_shards(names)
    if missing.count:
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


def _all_missing(names: Sequence[str]) -> Missing:
    return Missing(tuple(names), len(names))


def _incomplete(repository: str, missing: Missing) -> HubError:
    # Whatever stands in an index: a name may be long.
    message = missing.told(lambda name: f"{repository} is incomplete: the shard {name!r:.300} is missing.", _MOST_SHOWN)
    hint = "Take another revision; or name the files that you want all the same."
    return HubError(message, hint=hint, repository=repository)
