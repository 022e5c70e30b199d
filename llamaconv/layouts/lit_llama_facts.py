"""What lit-llama takes for granted: it has no description file, and reads a model's kind off the embedding's width.

Source: lit-llama ``lit_llama/model.py`` (``LLaMAConfig``, ``llama_configs``), ``lit_llama/utils.py``
(``llama_model_lookup``) and ``generate.py``, which builds what the lookup says and loads it strictly: a vocabulary that
is not padded to 32,000 rows does not load, nor does any other number of layers. Its quantized files keep
``quant_weight`` [out, in / codes per byte] in the place of ``weight`` in all but the embedding and the norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llamaconv.config import ModelConfig
from llamaconv.json_files import config_error
from llamaconv.layouts.description import Described, Native
from llamaconv.layouts.llama_config import layer_count, llama_config, matrices, require_agreement, stated

__all__ = ["described", "padded", "size_of", "stock_obstacles", "warnings_of"]

_BLOCK_SIZE = 2048
_EPSILON = 1e-5
_ROPE_THETA = 10_000.0
_VOCABULARY = 32_000


@dataclass(frozen=True)
class _Stock:
    """A model that the lookup knows."""

    name: str
    layers: int
    heads: int


_STOCK: Mapping[int, _Stock] = MappingProxyType(
    {
        4096: _Stock("7B", 32, 32),
        5120: _Stock("13B", 40, 40),
        6656: _Stock("30B", 60, 52),
        8192: _Stock("65B", 80, 64),
    }
)
"""By width."""


def size_of(config: ModelConfig) -> str | None:
    """The folder of a model of this width (``7B``), None for a width that the lookup does not know."""
    stock = _STOCK.get(config.hidden_size)
    return None if stock is None else stock.name


def padded(vocabulary: int) -> int:
    """Rows of the embedding and the head: the next multiple of 64."""
    return -(-vocabulary // 64) * 64


def stock_obstacles(config: ModelConfig) -> list[str]:
    """Why lit-llama's own scripts cannot load a model that its code can compute, one fact each; empty if they can."""
    facts = []
    stock = _STOCK.get(config.hidden_size)
    if stock is None:
        facts.append(f"a width of {config.hidden_size}; it knows {', '.join(map(str, _STOCK))}")
    else:
        if config.layers != stock.layers:
            facts.append(f"{config.layers} layers; it builds {stock.layers} at a width of {config.hidden_size}")
        if config.heads != stock.heads:
            facts.append(f"{config.heads} heads; it builds {stock.heads} at a width of {config.hidden_size}")
    rows = padded(config.vocab_size)
    if rows != _VOCABULARY:
        facts.append(f"a vocabulary of {config.vocab_size}, padded to {rows} rows; it builds {_VOCABULARY}")
    return facts


def warnings_of(config: ModelConfig) -> list[str]:
    """What lit-llama computes differently from the model, one fact each with its value."""
    facts = []
    if config.norm_eps not in (None, _EPSILON):
        facts.append(f"an epsilon of {config.norm_eps:g} in the norms; it computes with {_EPSILON:g}")
    if config.max_positions is not None and config.max_positions > _BLOCK_SIZE:
        facts.append(f"sequences of up to {config.max_positions}; it takes up to {_BLOCK_SIZE}")
    padding = padded(config.vocab_size) - config.vocab_size
    if padding:
        facts.append(f"a vocabulary of {config.vocab_size}; its logits have {padding} more, of padding, all 0")
    return facts


def described(native: Native) -> Described:
    """The config.json of a checkpoint in lit-llama's layout, dense or quantized: all sizes are the tensors'.

    Raises:
        ConfigError: Layers that are not numbered without gaps, a number of heads that nobody knows or that cannot be,
            a vocabulary that is not padded to the tensors' rows; all of them.
        CheckpointError: Tensors that sizes are read from are missing, or no matrices.
        UsageError: A rotary base or scaling that lit-llama does not compute with.
    """
    gate = "transformer.h.0.mlp.c_fc1"
    quantized = f"{gate}.quant_weight" in native.specs
    names = ("transformer.wte.weight", f"{gate}.{'quant_weight' if quantized else 'weight'}")
    (rows, width), (intermediate, _) = matrices(native.path, native.specs, names)
    given = native.given
    require_agreement(
        native.path, {"--rope-theta": (given.rope_theta, _ROPE_THETA), "--rope-factor": (given.rope_factor, 1)}
    )
    faults: list[str] = []
    notes: list[str] = []
    layers = layer_count(native.specs, "transformer.h.", faults)
    heads = _heads(native, width, layers, faults, notes)
    facts = {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": _vocabulary(native, rows, faults, notes),
        "tie_word_embeddings": bool(given.tied),
        "rope_theta": _ROPE_THETA,
        **_unsaid(native, notes),
    }
    if faults:
        raise config_error(native.path, faults)
    return Described(llama_config(native.path, facts, native.specs), tuple(notes))


def _heads(native: Native, width: int, layers: int, faults: list[str], notes: list[str]) -> int:
    """As the user states or lit-llama looks them up; 1 where a fault leaves no number."""
    stock, heads = _STOCK.get(width), native.given.heads
    if heads is None and stock is None:
        faults.append(f"no file says how many heads share the width of {width}: `convert --heads N` states it")
    elif heads is None and stock is not None:
        if layers == stock.layers:
            return stock.heads
        return stated(heads, stock.heads, "the number of heads", f"{stock.name} has it", "--heads", notes)
    elif heads is not None and heads > 0 and width % (2 * heads) == 0:
        return heads
    else:
        faults.append(f"{heads} heads, as --heads says, cannot share the width of {width} in pairs")
    return 1


def _vocabulary(native: Native, rows: int, faults: list[str], notes: list[str]) -> int:
    said = native.given.vocab_size
    vocabulary = stated(said, rows, "the vocabulary", "all rows of the embedding say", "--vocab-size", notes)
    if padded(vocabulary) != rows:
        said_by = "by --vocab-size " if said is not None else ""
        faults.append(f"a vocabulary of {vocabulary} {said_by}is padded to {padded(vocabulary)} rows, not {rows}")
    return vocabulary


def _unsaid(native: Native, notes: list[str]) -> dict[str, Any]:
    """What neither tensors nor code say."""
    given = native.given
    notes.append("the tokens of begin and end are 1 and 2, as Llama 1 has them")
    return {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rms_norm_eps": stated(
            given.norm_eps,
            _EPSILON,
            "the norms' epsilon",
            "lit-llama computes, though Llama 1 has 1e-06 up to 30B",
            "--norm-eps",
            notes,
        ),
        "max_position_embeddings": stated(
            given.max_positions, _BLOCK_SIZE, "the longest sequence", "lit-llama takes it", "--max-positions", notes
        ),
    }
