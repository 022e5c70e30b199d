"""A checkpoint seen through a layout's rules: another reader's tensors under other names, made when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from llamaconv.layouts.rows import lazily
from llamaconv.layouts.rules import Rule, local_specs
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["Tensors", "View"]


class Tensors(Protocol):
    """Tensors by name: any source of them."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    def __getitem__(self, name: str) -> LazyTensor: ...


class View:
    """What the rules make of a reader's tensors.

    Args:
        reader: Holds every tensor on the rules' hub side.
        rules: From its names to those of the view. The inverse of a layout's rules shows the hub.

    Raises:
        ValueError: A tensor has a shape that its operation cannot take.
        KeyError: The reader lacks a tensor.
    """

    def __init__(self, reader: Tensors, rules: Iterable[Rule]) -> None:
        self._reader = reader
        self._rules = {name: rule for rule in rules for name in rule.local}
        distinct = dict.fromkeys(self._rules.values())
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(local_specs(distinct, reader.specs))
        self.files = reader.files

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Raises:
            KeyError: There is none of that name.
        """
        rule = self._rules[name]
        made = lazily(rule.operation, [self._reader[source] for source in rule.hub], rule.local)
        return made[rule.local.index(name)]
