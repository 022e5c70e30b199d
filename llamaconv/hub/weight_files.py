"""Which files of a repository are a model's weights, once, decided by their names.

The order is that in which a folder's weights are chosen (llamaconv.sources.directory), so that what was downloaded is
what is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain

from llamaconv.errors import HubError
from llamaconv.weight_names import (
    LIT_LLAMA,
    LITGPT,
    SAFETENSORS,
    TORCH,
    HubFormat,
    Series,
    is_mistral,
    is_training_state,
    meta_ranks,
    missing_shards,
)

__all__ = ["chosen_weights", "format_of", "is_adapter", "is_index"]

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


_WeightsOf = Callable[[str, Sequence[str]], list[str]]
"""Of a repository, called so, with files called so at its top: those of one kind of weights, if it has them."""


def format_of(name: str) -> str | None:
    """The format of the weights that a file of this name has ("GGUF"); None if it has none."""
    return next((label for suffix, label in _FORMATS.items() if name.endswith(suffix)), None)


def is_index(name: str) -> bool:
    """Whether a file tells which shard has which tensor, of whatever weights."""
    return fnmatchcase(name, "*.index.json") or fnmatchcase(name, "*.index.*.json")


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


def _indexed(form: HubFormat, repository: str, names: Sequence[str]) -> list[str]:
    """An index and its shards: which these are stands in the index, so those that it can mean."""
    if form.index not in names:
        return []
    files = [name for name in names if fnmatchcase(name, form.glob)]
    shards = form.shards(files)
    if not shards:
        plain = [name for name in files if not is_mistral(name) and not _is_variant(form, name)]
        return [form.index, *plain] if plain else []
    # Shards of an earlier upload may be left beside them. An index may count from zero.
    gaps = {key: key.missing(set(members), first=0 if key.name(0) in members else 1) for key, members in shards.items()}
    whole = [name for key, members in shards.items() if not gaps[key] for name in members]
    if not whole:
        raise _incomplete(repository, [name for missing in gaps.values() for name in missing])
    return [form.index, *whole]


def _alone(choices: Sequence[str], repository: str, names: Sequence[str]) -> list[str]:
    """The one of ``choices`` that is there."""
    found = [name for name in choices if name in names]
    return _one_of(repository, {name: [name] for name in found})


def _other_safetensors(repository: str, names: Sequence[str]) -> list[str]:
    files = [name for name in names if name.endswith(SAFETENSORS.suffix) and not is_mistral(name)]
    plain = [name for name in files if not _is_variant(SAFETENSORS, name)]
    return _whole(repository, plain) if plain else _variant(SAFETENSORS, repository, files)


def _mistral(repository: str, names: Sequence[str]) -> list[str]:
    return _whole(repository, [name for name in names if is_mistral(name)])


def _meta(repository: str, names: Sequence[str]) -> list[str]:
    return _whole(repository, list(meta_ranks(names).values()))


def _torch_shards(repository: str, names: Sequence[str]) -> list[str]:
    return _whole(repository, list(chain.from_iterable(TORCH.shards(names).values())))


def _variant(form: HubFormat, repository: str, names: Sequence[str]) -> list[str]:
    """Weights in another precision (``model.fp16.safetensors``), if there is only one."""
    files = [name for name in names if _is_variant(form, name)]
    variants: dict[str, list[str]] = defaultdict(list)
    for name in files:
        series = Series.of(name)
        variants[series.stem + series.suffix if series else name].append(name)
    return _whole(repository, _one_of(repository, variants))


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
    if missing := missing_shards(names):
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
