"""What takes a decoder block's place: it records, stops, or injects hidden states instead of computing them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llamaconv.errors import UnsupportedError

__all__ = ["BlockInputs", "Inject", "Recorder", "StandIn", "Stop", "Stopped", "run_until_stopped"]


@dataclass(frozen=True)
class BlockInputs:
    """What one decoder block receives beside the hidden states: mask, position embeddings, position ids."""

    positional: tuple[Any, ...]
    keyword: Mapping[str, Any]

    def to(self, device: str | torch.device) -> BlockInputs:
        """The same with every tensor moved."""
        return BlockInputs(
            tuple(_moved(value, device) for value in self.positional),
            {name: _moved(value, device) for name, value in self.keyword.items()},
        )


class StandIn(nn.Module):
    """Takes a block's place; attributes the model asks of the block (its attention type) are still answered."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)


class Recorder(StandIn):
    is_last = False

    def forward(self, hidden_states: Tensor, *positional: Any, **keyword: Any) -> Any:
        self.received = (positional, keyword)
        if self.is_last:
            raise Stopped(hidden_states)
        return _like_output_of(self._block, hidden_states, BlockInputs(positional, keyword))


class Stop(StandIn):
    def forward(self, hidden_states: Tensor, *positional: Any, **keyword: Any) -> Any:
        raise Stopped(hidden_states)


class Inject(StandIn):
    def __init__(self, block: nn.Module, injected: threading.local) -> None:
        super().__init__(block)
        self._injected = injected

    def forward(self, hidden_states: Tensor, *positional: Any, **keyword: Any) -> Any:
        return _like_output_of(self._block, self._injected.hidden, BlockInputs(positional, keyword))


class Stopped(Exception):
    """Carries hidden states out of a model that need not run any further."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def run_until_stopped(model: nn.Module, tokens: Tensor) -> Tensor:
    try:
        model(input_ids=tokens.long(), use_cache=False)
    except Stopped as stopped:
        return stopped.hidden
    raise AssertionError("the model ran without calling its last stand-in")


def _like_output_of(block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> Any:
    """``hidden`` as this block would return it: transformers 5 returns a tensor, 4.57 in part a tuple."""
    known = getattr(block, "_returns_tuple", None)
    if known is None:
        meta = inputs.to("meta")
        try:
            output = block(hidden.to("meta"), *meta.positional, **meta.keyword)
        except (RuntimeError, NotImplementedError) as error:
            # A mixture of experts, say, decides by the values of its input what it computes.
            reason = str(error).splitlines()[0]
            raise UnsupportedError(
                f"{type(block).__name__} cannot be planned from shapes alone: {reason}",
                hint="Only models whose decoder blocks compute the same for every input can be run block by block.",
            ) from error
        known = isinstance(output, tuple)
        object.__setattr__(block, "_returns_tuple", known)
    return (hidden,) if known else hidden


def _moved(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    return value
