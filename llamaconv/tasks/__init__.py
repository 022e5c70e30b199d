"""The library: one use case per file, each imported when it is first asked for.

``llamaconv.tasks.inspect.inspect(path)`` is the library's twin of ``llamaconv inspect PATH``; the others are alike.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
