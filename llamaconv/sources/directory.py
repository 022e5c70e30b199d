"""Which of the files in a folder are a checkpoint's weights, decided by their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from llamaconv.errors import CheckpointError
from llamaconv.weight_names import (
    LIT_LLAMA,
    LITGPT,
    SAFETENSORS,
    TORCH,
    is_mistral,
    is_training_state,
    meta_ranks,
    missing_shards,
)

__all__ = ["Choice", "choose", "listed", "weight_names"]

_TORCH_SUFFIXES = (".bin", ".pth", ".pt")


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
    suffixes = (SAFETENSORS.suffix, *_TORCH_SUFFIXES)
    return [name for name in names if name.endswith(suffixes) and not is_training_state(name)]


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
    missing = missing_shards(names)
    if missing.count:
        message = missing.told(lambda name: f"{directory}: the shard {name!r} is missing.")
        hint = "The checkpoint is incomplete: download it again."
        raise CheckpointError(message, hint=hint, missing=list(missing.names))
    label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return Choice(directory, label, tuple(names))


def _of_safetensors(directory: Path, found: Sequence[str]) -> Choice | None:
    names = [name for name in weight_names(found) if name.endswith(SAFETENSORS.suffix)]
    return (
        _alone(directory, found, (SAFETENSORS.index, SAFETENSORS.single))
        or _together(directory, [name for name in names if not is_mistral(name)])
        or _together(directory, names)
    )


def _of_hub_torch(directory: Path, found: Sequence[str]) -> Choice | None:
    return _alone(directory, found, (TORCH.index, TORCH.single))


def _of_hub_shards(directory: Path, found: Sequence[str]) -> Choice | None:
    return _together(directory, sorted(chain.from_iterable(TORCH.shards(found).values())))


def _of_torch(directory: Path, found: Sequence[str]) -> Choice | None:
    return _together(directory, [name for name in weight_names(found) if name.endswith(_TORCH_SUFFIXES)])


def _of_litgpt(directory: Path, found: Sequence[str]) -> Choice | None:
    return _alone(directory, found, (LITGPT,))


def _of_meta(directory: Path, found: Sequence[str]) -> Choice | None:
    ranks = meta_ranks(found)
    choice = _together(directory, list(ranks.values()))
    prefixes = tuple(f"{rank:02}/" for rank in ranks)
    return choice and replace(choice, prefixes=prefixes if len(ranks) > 1 else None)


def _of_lit_llama(directory: Path, found: Sequence[str]) -> Choice | None:
    folders = [directory]
    if not set(LIT_LLAMA) & set(found):
        folders = [
            directory / name
            for name in found
            if any(os.path.isfile(directory / name / weights) for weights in LIT_LLAMA)
        ]
    if not folders:
        return None
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise CheckpointError(f"{directory}: lit-llama's weights are in {names}.", hint="Give one of these folders.")
    names_there = [name for name in LIT_LLAMA if os.path.isfile(folders[0] / name)]
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


def _no_weights(directory: Path, found: Sequence[str]) -> CheckpointError:
    """The error for a directory without weights, which says what was found instead."""
    if not found:
        return CheckpointError(f"{directory} is empty.", file=str(directory))
    shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    hint = "Give the folder that holds the weights, *.safetensors or torch files."
    if "snapshots" in found:
        hint = "This is a folder of the Hub's cache: give the one below snapshots/."
    return CheckpointError(f"{directory}: no weights there, only {shown}.", hint=hint, file=str(directory))
