"""The files around the weights that belong to a model whatever its weights are: tokenizer, templates, licence."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from llamaconv.digests import sha256_file
from llamaconv.disk import writing
from llamaconv.errors import CheckpointError

__all__ = ["companions", "copy_files", "require_readable"]

_COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
)


def companions(directory: Path) -> list[Path]:
    """The files of a model directory that are copied with the model, as many as there are."""
    found = [directory / name for name in _COMPANIONS if (directory / name).is_file()]
    return found + sorted((directory / "additional_chat_templates").glob("*.jinja"))


def require_readable(paths: Sequence[Path]) -> None:
    """Raise before work begins what would stop it at its end.

    Raises:
        CheckpointError: Files that cannot be opened, all of them.
    """
    faults = []
    for path in paths:
        try:
            path.open("rb").close()
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
    if faults:
        raise CheckpointError("\n".join(faults), hint="These files belong to the model and are copied with it.")


def copy_files(paths: Iterable[Path], source: Path, out: Path) -> dict[str, str]:
    """Copy files that lie in ``source`` to the same places in ``out``.

    Returns:
        sha256 of each, by its name relative to ``out``.
    """
    digests = {}
    for path in paths:
        target = out / path.relative_to(source)
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        digests[str(path.relative_to(source))] = sha256_file(target)
    return digests
