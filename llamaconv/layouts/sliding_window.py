"""Which layers see no further than a sliding window, as each family's config.json tells it.

Source: transformers ``models/{mistral,mixtral,qwen2,qwen3}/configuration_*.py``, 4.57 and 5 alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaconv.config import ModelConfig, Size
from llamaconv.json_files import config_error, validated

__all__ = ["SlidingWindow", "sliding_window"]


@dataclass(frozen=True)
class SlidingWindow:
    """A window over keys.

    Attributes:
        size: Positions that a token sees, its own included.
        layers: Whether each layer has it; at least one does.
    """

    size: int
    layers: tuple[bool, ...]


class _Mistral(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    sliding_window: Size | None = 4096


class _Mixtral(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    sliding_window: Size | None = None


class _Qwen(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: Annotated[int, Field(ge=0)] = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None


def sliding_window(config: ModelConfig, path: Path = Path("config.json")) -> SlidingWindow | None:
    """The window that a model of a known family computes with; None if every layer sees everything.

    Raises:
        ConfigError: Values that cannot be; ``path`` is for the message.
    """
    match config.model_type:
        case "mistral":
            size = validated(_Mistral, config.raw, path).sliding_window
        case "mixtral":
            size = validated(_Mixtral, config.raw, path).sliding_window
        case "qwen2" | "qwen3":
            return _by_layer(config, path)
        case _:
            size = None
    return None if size is None else SlidingWindow(size, (True,) * config.layers)


def _by_layer(config: ModelConfig, path: Path) -> SlidingWindow | None:
    keys = validated(_Qwen, config.raw, path)
    if not keys.use_sliding_window or keys.sliding_window is None:
        return None
    if keys.layer_types is None:
        layers = tuple(layer >= keys.max_window_layers for layer in range(config.layers))
    elif len(keys.layer_types) != config.layers:
        raise config_error(path, [f"layer_types are {len(keys.layer_types)}, num_hidden_layers is {config.layers}"])
    else:
        layers = tuple(kind == "sliding_attention" for kind in keys.layer_types)
    return SlidingWindow(keys.sliding_window, layers) if any(layers) else None
