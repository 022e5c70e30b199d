"""Which software made an artifact."""

from __future__ import annotations

from importlib.metadata import version as installed

import llamaconv

__all__ = ["libraries", "version"]


def version() -> str:
    """llamaconv's version."""
    return llamaconv.__version__


def libraries(*used: str) -> dict[str, str]:
    """Versions of the libraries that have a say in the bytes, build tags included."""
    return {name: installed(name) for name in sorted({"torch", "transformers", "safetensors", "numpy", *used})}
