"""Every layout there is, and which one a checkpoint has, told by its tensors' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from llamaconv.layouts import lit_llama, litgpt, meta_llama
from llamaconv.layouts.hugging_face import FAMILIES
from llamaconv.layouts.rules import Layout

__all__ = ["HUGGING_FACE", "LAYOUTS", "nearest", "recognized"]

HUGGING_FACE = Layout("hf", config_file="config.json")

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (HUGGING_FACE, litgpt.LAYOUT, litgpt.LEGACY, lit_llama.LAYOUT, meta_llama.LAYOUT)
    }
)
"""By name on the command line."""

_RANK = re.compile(r"^[0-9]{2,}/")
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")


def recognized(names: Iterable[str]) -> Layout | None:
    """The layout whose modules the tensors belong to; None if not most of them belong to one layout's."""
    modules = _modules(names)
    layout, shared = _best(modules)
    return layout if 2 * shared > len(modules) else None


def nearest(names: Iterable[str]) -> tuple[Layout, int, int]:
    """The layout that shares most modules with the tensors: how many, and of how many."""
    modules = _modules(names)
    return (*_best(modules), len(modules))


def _best(modules: frozenset[str]) -> tuple[Layout, int]:
    scores = [(layout, len(modules & _known_modules(layout))) for layout in LAYOUTS.values()]
    return max(scores, key=lambda item: item[1])


def _known_modules(layout: Layout) -> frozenset[str]:
    if layout.templates:
        return _modules(name for template in layout.templates for name in template.local)
    return _modules(template.name for templates in FAMILIES.values() for template in templates)


def _modules(names: Iterable[str]) -> frozenset[str]:
    """What tensors are parameters of, without numbers: how a layer is quantized says nothing of the layout."""
    plain = (re.sub(r"\{(layer|expert)\}", "0", _RANK.sub("", name)) for name in names)
    return frozenset(_NUMBER.sub("N", name).rpartition(".")[0] for name in plain)
