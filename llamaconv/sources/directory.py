"""Which of the files in a folder are a checkpoint's weights, decided by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from llamaconv.errors import CheckpointError
from llamaconv.sources.base import one_per_line

__all__ = ["Choice", "choose", "listed", "weight_names"]

_HUB_SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
_HUB_TORCH = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_META = re.compile(r"consolidated\.(?P<rank>[0-9]{2}|[1-9][0-9]{2,4})\.pth")
_LITGPT = "lit_model.pth"
_LIT_LLAMA = ("lit-llama.pth", "llama-gptq.4bit.pth", "llama-gptq.8bit.pth")
_MISTRAL = "consolidated*.safetensors"  # the same model again under other names, beside the Hub's files
_HUB_SHARDS = "pytorch_model-*-of-*.bin"
_SAFETENSORS = ".safetensors"
_TORCH = (".bin", ".pth", ".pt")
_TRAINING_STATE = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.pt", "rng_state*.pth")

_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})(?P<suffix>\.[a-z]+)")
_MOST_SHARDS = 100_000  # a file name alone must not cost memory


@dataclass(frozen=True)
class Choice:
    """The weights of a checkpoint.

    Attributes:
        directory: Where they are, and config.json beside them.
        label: What to call them in a message.
        names: The weight files, or the index that names them.
        prefixes: For files of tensor-parallel ranks, what sets each one's tensors apart ("00/").
    """

    directory: Path
    label: str
    names: tuple[str, ...]
    prefixes: tuple[str, ...] | None = None


def choose(directory: Path, prefer: str | None = None) -> Choice:
    """The weights in a folder.

    They are those that the layout ``prefer`` ("hf", "litgpt", "litgpt-legacy", "lit-llama" or "meta") has names for, if
    there are any; else the first of these that are there: ``model.safetensors.index.json``; ``model.safetensors``; all
    other ``*.safetensors``; ``pytorch_model.bin.index.json``; ``pytorch_model.bin``; Meta's ``consolidated.NN.pth``,
    one for each rank; litgpt's ``lit_model.pth``; lit-llama's ``lit-llama.pth``, ``llama-gptq.4bit.pth`` or
    ``llama-gptq.8bit.pth``, which may be in a subfolder; all ``pytorch_model-*-of-*.bin``; all other ``*.bin``,
    ``*.pth`` and ``*.pt``.

    Raises:
        CheckpointError: There are none, or not all that belong together, or several models.
    """
    found = listed(directory)
    kinds = (_of_safetensors, _of_hub_torch, _of_meta, _of_litgpt, _of_lit_llama, _of_hub_shards, _of_torch)
    for kind in (*(_OWN[prefer] if prefer else ()), *kinds):
        if choice := kind(directory, found):
            return choice
    raise _no_weights(directory, found)


def weight_names(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that a model's weights may have, not the state of its training."""
    return [
        name
        for name in names
        if name.endswith((_SAFETENSORS, *_TORCH)) and not any(fnmatchcase(name, state) for state in _TRAINING_STATE)
    ]


def listed(directory: Path) -> list[str]:
    """What is in a folder, by name.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror}.", file=str(directory)) from error


def _alone(directory: Path, found: Sequence[str], names: Sequence[str]) -> Choice | None:
    """The first of ``names`` that was found."""
    return next((Choice(directory, name, (name,)) for name in names if name in found), None)


def _together(directory: Path, names: Sequence[str]) -> Choice | None:
    """All of ``names``, which must be complete where they are numbered."""
    if not names:
        return None
    _require(directory, _missing_numbers(names))
    label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return Choice(directory, label, tuple(names))


def _of_safetensors(directory: Path, found: Sequence[str]) -> Choice | None:
    names = [name for name in weight_names(found) if name.endswith(_SAFETENSORS)]
    return (
        _alone(directory, found, _HUB_SAFETENSORS)
        or _together(directory, [name for name in names if not fnmatchcase(name, _MISTRAL)])
        or _together(directory, names)
    )


def _of_hub_torch(directory: Path, found: Sequence[str]) -> Choice | None:
    return _alone(directory, found, _HUB_TORCH)


def _of_hub_shards(directory: Path, found: Sequence[str]) -> Choice | None:
    return _together(directory, [name for name in found if fnmatchcase(name, _HUB_SHARDS)])


def _of_torch(directory: Path, found: Sequence[str]) -> Choice | None:
    return _together(directory, [name for name in weight_names(found) if name.endswith(_TORCH)])


def _of_litgpt(directory: Path, found: Sequence[str]) -> Choice | None:
    return _alone(directory, found, (_LITGPT,))


def _of_meta(directory: Path, found: Sequence[str]) -> Choice | None:
    ranks = {int(match["rank"]): name for name in found if (match := _META.fullmatch(name))}
    if not ranks:
        return None
    count = max(ranks) + 1
    _require(directory, [f"consolidated.{rank:02}.pth" for rank in range(count) if rank not in ranks])
    choice = _together(directory, [ranks[rank] for rank in range(count)])
    prefixes = tuple(f"{rank:02}/" for rank in range(count))
    return choice and replace(choice, prefixes=prefixes if count > 1 else None)


def _of_lit_llama(directory: Path, found: Sequence[str]) -> Choice | None:
    folders = [directory]
    if not set(_LIT_LLAMA) & set(found):
        folders = [
            directory / name
            for name in found
            if any(os.path.isfile(directory / name / weights) for weights in _LIT_LLAMA)
        ]
    if not folders:
        return None
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise CheckpointError(f"{directory}: lit-llama's weights are in {names}.", hint="Give one of these folders.")
    names_there = [name for name in _LIT_LLAMA if os.path.isfile(folders[0] / name)]
    if len(names_there) > 1:
        models = ", ".join(names_there)
        raise CheckpointError(f"{folders[0]}: several models: {models}.", hint="Give one of these files.")
    return _together(folders[0], names_there)


_OWN = {
    "hf": (_of_safetensors, _of_hub_torch, _of_hub_shards),
    "litgpt": (_of_litgpt,),
    "litgpt-legacy": (_of_litgpt,),
    "lit-llama": (_of_lit_llama,),
    "meta": (_of_meta,),
}


def _require(directory: Path, missing: Sequence[str]) -> None:
    if missing:
        message = one_per_line([f"{directory}: the shard {name!r} is missing." for name in missing])
        raise CheckpointError(message, hint="The checkpoint is incomplete: download it again.", missing=list(missing))


def _missing_numbers(names: Sequence[str]) -> list[str]:
    """The shards that the numbering "…-00001-of-00005" of their siblings promises and ``names`` lacks."""
    present = set(names)
    matches = (match for name in names if (match := _NUMBERED.fullmatch(name)))
    series = {(match["stem"], len(match["number"]), match["count"], match["suffix"]) for match in matches}
    return [
        sibling
        for stem, width, count, suffix in sorted(series)
        for number in range(1, min(int(count), _MOST_SHARDS) + 1)
        if (sibling := f"{stem}-{number:0{width}}-of-{count}{suffix}") not in present
    ]


def _no_weights(directory: Path, found: Sequence[str]) -> CheckpointError:
    """The error for a directory without weights, which says what was found instead."""
    if not found:
        return CheckpointError(f"{directory} is empty.", file=str(directory))
    shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    hint = "Give the folder that holds the weights, *.safetensors or torch files."
    if "snapshots" in found:
        hint = "This is a folder of the Hub's cache: give the one below snapshots/."
    return CheckpointError(f"{directory}: no weights there, only {shown}.", hint=hint, file=str(directory))
