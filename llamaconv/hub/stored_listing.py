"""What was last asked for and listed, kept in the local directory: enough to work without a network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from llamaconv.hub.repository import Listing
from llamaconv.weight_names import SAFETENSORS, TORCH

__all__ = ["Stored"]


@dataclass(frozen=True)
class Stored:
    """An answered question.

    Attributes:
        revision: As it was asked for: a branch, tag or commit.
        listing: All files of its commit.
        selected: Names of those that were wanted.
        complete: Whether these are one complete model, and not what somebody chose.
    """

    revision: str
    listing: Listing
    selected: tuple[str, ...]
    complete: bool

    @property
    def known(self) -> Listing:
        """The listing, less indexes of weights that were read and passed over: they are not kept to be read again."""
        if not self.complete:
            return self.listing
        passed = {form.index for form in (SAFETENSORS, TORCH)} - set(self.selected)
        return replace(self.listing, files=tuple(file for file in self.listing if file.name not in passed))

    def to_json(self) -> bytes:
        """As ``from_json`` reads it."""
        return _FORM.dump_json(self, indent=2) + b"\n"

    @staticmethod
    def from_json(data: bytes) -> Stored:
        """What ``to_json`` wrote.

        Raises:
            ValueError: It is damaged.
        """
        stored = _FORM.validate_json(data, strict=True)
        if not {file.name for file in stored.listing}.issuperset(stored.selected):
            raise ValueError("a file is selected that is not listed")
        return stored


_FORM = TypeAdapter(Stored)
