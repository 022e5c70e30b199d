"""Which files of a repository are downloaded: those that were asked for, or one complete model."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from llamaconv.errors import HubError, UsageError
from llamaconv.hub.names import unusable
from llamaconv.hub.repository import Listing, RemoteFile
from llamaconv.hub.result import Skipped
from llamaconv.hub.weight_files import chosen_weights, format_of, is_adapter, is_index
from llamaconv.json_files import shown
from llamaconv.weight_names import SAFETENSORS, is_training_state

__all__ = ["Selection", "grouped", "is_read_with", "select"]

_AROUND = (
    "*.json",
    "*.model",
    "tokenizer.model.*",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "*.spm",
    "*.tiktoken",
    "*.jinja",
    "*.py",
    "model_config.yaml",
)
_LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")  # in capitals or not
_TEMPLATES = "additional_chat_templates"
_MOST_FOLDERS = 4
_MOST_NAMES = 3
_MOST_FAULTS = 10
_MOST_COMPARED = 1000  # comparing with each of 100,000 names would take minutes

_UNASKED = "not asked for"
_OTHER_WEIGHTS = "other weights"
_STALE = "no index of what is there"
_ADAPTER = "an adapter"
_TRAINING = "the state of a training"
_ELSEWHERE = "not part of the model at the top"
_UNNEEDED = "not needed to use the model"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The files of a listing that are downloaded, and a word on the others.

    Attributes:
        chosen: In the listing's order.
        skipped: All the others, in a few lines.
    """

    chosen: tuple[RemoteFile, ...]
    skipped: tuple[Skipped, ...]


def select(
    listing: Listing,
    files: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
    read: Callable[[RemoteFile], bytes],
) -> Selection:
    """The files of a repository that are wanted.

    Args:
        listing: What there is.
        files: Names; one that ends in "/" is a folder with all below it.
        include, exclude: Globs over whole names as in huggingface_hub: ``*`` crosses slashes, case counts, and one
            that ends in "/" is a folder. Without ``include`` all that ``exclude`` leaves is wanted.
        read: Gives the contents of an index of weights, if none of the others says what is wanted.

    With none of these it is one complete model: configuration, tokenizer and licence at the top of the repository, and
    the weights once, in the form that is chosen in a folder (``chosen_weights``).

    Raises:
        UsageError: Names together with patterns; patterns of ``include`` that match nothing; nothing is left.
        HubError: Names that the repository does not have; no weights, or not all that belong together. Or what
            ``read`` raises.
    """
    if files and (include or exclude):
        raise UsageError("Both files and patterns were given.", hint="Name the files, or use --include and --exclude.")
    if files:
        return _named(listing, files)
    if include or exclude:
        return _matching(listing, include, exclude)
    return _model(listing, read)


def is_read_with(name: str, chosen: Iterable[str]) -> bool:
    """Whether a file of this name, if it lay beside the ``chosen`` ones, would be taken for a part of that model.

    These are configuration, tokenizer, templates, and weights that are preferred to those chosen, or as good.
    """
    torch = any(format_of(one) == "torch" for one in chosen)
    weights = format_of(name) == "safetensors" or (torch and format_of(name) == "torch")
    if "/" in name or is_training_state(name) or is_adapter(name):
        return False
    if is_index(name):
        return torch or name == SAFETENSORS.index
    return weights or any(fnmatchcase(name, pattern) for pattern in _AROUND)


def _named(listing: Listing, files: Sequence[str]) -> Selection:
    names = [file.name for file in listing]
    known = set(names)
    folders = tuple(sorted({file for file in files if file.endswith("/") and any(n.startswith(file) for n in names)}))
    unknown = [file for file in dict.fromkeys(files) if file not in known and file not in folders]
    if unknown:
        raise _unknown(listing.repository, unknown, names)
    wanted = known.intersection(files)
    return _selection(
        listing, {name: _UNASKED for name in names if name not in wanted and not name.startswith(folders)}
    )


def _unknown(repository: str, unknown: Sequence[str], names: Sequence[str]) -> HubError:
    folders = sorted({name[: name.rindex("/") + 1] for name in names if "/" in name})
    candidates = sorted([*names, *folders], key=lambda name: name.count("/"))[:_MOST_COMPARED]
    lines = []
    for name in unknown[:_MOST_FAULTS]:
        if reason := unusable(name):
            lines.append(f"{repository}: no file here can have the name {shown(name)}: it {reason}.")
            continue
        nearest = get_close_matches(name, candidates, n=1)
        lines.append(f"{repository} has no {name!r}" + (f": did you mean {nearest[0]!r}?" if nearest else "."))
    if len(unknown) > _MOST_FAULTS:
        lines.append(f"… and {len(unknown) - _MOST_FAULTS} more.")
    hint = f"It has {_several(names)}." if names else "It has no files."
    return HubError("\n".join(lines), hint=hint, repository=repository)


def _matching(listing: Listing, include: Sequence[str], exclude: Sequence[str]) -> Selection:
    names = [file.name for file in listing]
    included = {pattern: _matches(pattern, names) for pattern in include}
    excluded = {pattern: _matches(pattern, names) for pattern in exclude}
    if idle := [pattern for pattern, matches in included.items() if not matches]:
        message = "\n".join(f"{listing.repository} has no file that matches {pattern!r}." for pattern in idle)
        raise UsageError(message, hint=f"It has {_several(names)}." if names else "It has no files.")
    for pattern, matches in excluded.items():
        if not matches:
            _log.warning("%s has no file that matches %r: it excludes nothing", listing.repository, pattern)
    wanted = set().union(*included.values()) if include else set(names)
    left = wanted.difference(*excluded.values())
    if not left:
        hint = "Leave out a pattern of --exclude." if names else "It has no files."
        raise UsageError(f"No file of {listing.repository} is left to download.", hint=hint)
    left_out = {name: "excluded" if name in wanted else _UNASKED for name in names if name not in left}
    return _selection(listing, left_out)


def _matches(pattern: str, names: Iterable[str]) -> set[str]:
    glob = f"{pattern}*" if pattern.endswith("/") else pattern
    return {name for name in names if fnmatchcase(name, glob)}


def _model(listing: Listing, read: Callable[[RemoteFile], bytes]) -> Selection:
    names = [file.name for file in listing]
    weights = chosen_weights(listing, read)
    if not weights.names:
        raise _no_weights(listing.repository, names)
    others = set(names).difference(weights.names)
    reasons = {name: reason for name in names if name in others and (reason := _reason(name))}
    return _selection(listing, {**reasons, **dict.fromkeys(weights.stale, _STALE)})


def _reason(name: str) -> str | None:
    """Why a file beside the chosen weights is not part of the model; None if it is."""
    if "/" in name:
        folder, _, rest = name.partition("/")
        template = folder == _TEMPLATES and "/" not in rest and rest.endswith(".jinja")
        return None if template else _ELSEWHERE
    if is_adapter(name):
        return _ADAPTER
    if is_training_state(name):
        return _TRAINING
    if format_of(name) or is_index(name):
        return _OTHER_WEIGHTS
    needed = any(fnmatchcase(name, pattern) for pattern in _AROUND)
    return None if needed or any(fnmatchcase(name.upper(), pattern) for pattern in _LEGAL) else _UNNEEDED


def _no_weights(repository: str, names: Sequence[str]) -> HubError:
    """The error for a repository from which no weights are taken, which says what weights there are."""
    there = [name for name in names if "/" not in name and format_of(name) and not is_training_state(name)]
    formats = sorted({str(format_of(name)) for name in there if not is_adapter(name)})
    found = [f"{', '.join(formats)} files"] if formats else []
    if any(is_adapter(name) for name in there):
        found.append("an adapter")
    folders = sorted({name.partition("/")[0] + "/" for name in names if "/" in name and format_of(name)})
    if folders:
        found.append(f"weights in {_several(folders)}")
    what = f"only {' and '.join(found)}" if found else "no weights at all"
    message = f"{repository} has no weights that are taken without being named: {what}."
    return HubError(message, hint="Name the files that you want, or choose them with --include.", repository=repository)


def _selection(listing: Listing, left_out: Mapping[str, str]) -> Selection:
    """All files but those in ``left_out``, for which it has the reasons."""
    return Selection(tuple(file for file in listing if file.name not in left_out), grouped(left_out))


def grouped(left_out: Mapping[str, str]) -> tuple[Skipped, ...]:
    """The files in ``left_out``, a line for all that have the same reason."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, reason in left_out.items():
        groups[reason].append(name)
    return tuple(
        Skipped(what, reason, tuple(members))
        for reason, names in groups.items()
        for what, members in (_by_folder(names) if reason == _ELSEWHERE else [(_counted(names), names)])
    )


def _by_folder(names: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folders[name.partition("/")[0]].append(name)
    if len(folders) > _MOST_FOLDERS:
        return [(f"{len(names)} files in {len(folders)} folders", names)]
    return [
        (below[0] if len(below) == 1 else f"{len(below)} files in {name}/", below) for name, below in folders.items()
    ]


def _counted(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files ({_several(names)})"


def _several(names: Sequence[str]) -> str:
    """Some of ``names``, the others counted."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
