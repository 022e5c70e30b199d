"""What is done to a checkpoint so that it cannot be converted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from llamaconv.errors import LlamaconvError
from tests.sources.torch_files import Call, write_zip
from tests.tasks.conversions import stored

__all__ = ["Bad", "changed", "hostile", "nothing", "removed", "renamed", "told"]


@dataclass(frozen=True)
class Bad:
    """What is wrong, and what must be said.

    Attributes:
        layout: Of the source before it is spoilt.
        spoil: Done to the source.
        kind: The error.
        lines: Of its message, all of them; ``{source}`` stands for the folder.
        settings: Of the run.
        name: Of the model in ``MODELS``.
    """

    layout: str
    spoil: Callable[[Path], object]
    kind: type[LlamaconvError]
    lines: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = "Llama 1"


def nothing(source: Path) -> None:
    """The source is good; what is asked of it is not."""


def changed(file: str, **changes: Tensor | None) -> Callable[[Path], object]:
    """Other tensors in a torch file; None removes one."""

    def spoil(source: Path) -> None:
        tensors = {**stored(source), **changes}
        write_zip(source / file, {name: tensor for name, tensor in tensors.items() if tensor is not None})

    return spoil


def told(**fields: Any) -> Callable[[Path], object]:
    """Other fields in model_config.yaml and in params.json, whichever there is, and no config.json beside."""

    def spoil(source: Path) -> None:
        (source / "config.json").unlink(missing_ok=True)
        for name, load, dump in (
            ("model_config.yaml", yaml.safe_load, yaml.safe_dump),
            ("params.json", json.loads, json.dumps),
        ):
            path = source / name
            if path.exists():
                path.write_text(dump(load(path.read_text()) | fields))

    return spoil


def removed(name: str) -> Callable[[Path], object]:
    return lambda source: (source / name).unlink()


def renamed(source: Path) -> None:
    """Names of which one in three is litgpt's, and no description."""
    for path in source.iterdir():
        path.unlink()
    names = ["transformer.wte.weight", "transformer.h.0.a.weight", "transformer.h.1.a.weight", "head"]
    write_zip(source / "lit_model.pth", {name: torch.zeros(3) for name in names})


def hostile(file: str) -> Callable[[Path], object]:
    """A pickle that would make a folder if it were run."""

    def spoil(source: Path) -> None:
        attack = {"lm_head.weight": torch.zeros(2), "x": Call(os.mkdir, str(source.parent / "home" / "out"))}
        for path in source.glob("*.safetensors"):
            path.unlink()
        torch.save(attack, source / file)

    return spoil
