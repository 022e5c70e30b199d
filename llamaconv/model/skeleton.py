"""A transformers causal language model without its weights, and what its decoder blocks receive.

Every parameter is on the meta device; the few that a computation needs are put in and taken out again. Buffers that
no checkpoint holds (rotary frequencies, embedding scales) are computed as the architecture computes them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from llamaconv.errors import ConfigError, UnsupportedError
from llamaconv.model.stand_ins import BlockInputs, Inject, Recorder, StandIn, Stop, Stopped, run_until_stopped

__all__ = ["Skeleton", "clear", "put"]

# Keys of config.json that say nothing of the architecture: how somebody stored it, ran it or would load it.
_NO_ARCHITECTURE = frozenset({"auto_map", "quantization_config", "attn_implementation", "_attn_implementation"})


class Skeleton:
    """A causal language model on the meta device.

    Attributes:
        model: The transformers model.
        blocks: Its decoder blocks.
        block_names: Their names, as prefixes of parameter names (``model.layers.0``).
        dtype: The dtype computations run in.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.model = model
        self.dtype = dtype
        stem, self.blocks = _decoder_blocks(model)
        self.block_names = tuple(f"{stem}.{index}" for index in range(len(self.blocks)))
        self._stem = stem

    @classmethod
    def build(cls, config: Mapping[str, Any], dtype: torch.dtype) -> Skeleton:
        """Build from the contents of config.json. Remote code is never run.

        Raises:
            UnsupportedError: transformers knows no causal language model for this ``model_type``.
            ConfigError: transformers refuses the configuration.
        """
        # A deep copy: transformers writes into the dictionaries it is given.
        raw = deepcopy({key: value for key, value in config.items() if key not in _NO_ARCHITECTURE})
        kind = raw.get("model_type")
        if kind not in CONFIG_MAPPING:
            raise UnsupportedError(
                f"config.json: transformers knows no model_type {kind!r}",
                hint="Only architectures that transformers itself holds can be run; remote code never is.",
            )
        try:
            parsed = AutoConfig.for_model(**raw)
        except Exception as error:  # each architecture checks in its own way
            raise _refused(error) from error
        if type(parsed) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UnsupportedError(f"config.json: {kind!r} is no causal language model that transformers can build")
        try:
            with _parameters_on_meta():
                model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call,unused-ignore]
                    parsed, dtype=dtype, trust_remote_code=False
                )
        except Exception as error:  # KeyError for an unknown activation, AssertionError, RuntimeError for absurd sizes
            raise _refused(error) from error
        return cls(model.eval().requires_grad_(False), dtype)

    def exit_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that run after the last block (final norm, head), in the model's order."""
        entry = self.entry_parameters()
        names = (name for name, _ in self.model.named_parameters(remove_duplicate=False))
        return tuple(name for name in names if not self._in_block(name) and name not in entry)

    @property
    def head(self) -> str | None:
        """Name of the layer that gives the logits (``lm_head``)."""
        return self._name_of(self.model.get_output_embeddings())

    @property
    def tie(self) -> dict[str, str]:
        """``{name of the head's weight: name of the embedding's}`` where the config ties them, else empty."""
        head, embedding = self.head, self._name_of(self.model.get_input_embeddings())
        if head is None or embedding is None or not self.model.config.get_text_config().tie_word_embeddings:
            return {}
        return {f"{head}.weight": f"{embedding}.weight"}

    def _name_of(self, module: nn.Module | None) -> str | None:
        return next((name for name, other in self.model.named_modules() if other is module), None)

    def _in_block(self, name: str) -> bool:
        return name.startswith(f"{self._stem}.")

    def block_parameters(self, index: int) -> tuple[str, ...]:
        """Full names of one block's parameters."""
        prefix = self.block_names[index]
        return tuple(f"{prefix}.{name}" for name, _ in self.blocks[index].named_parameters())

    def record(self, length: int) -> tuple[BlockInputs, ...]:
        """What each block receives beside the hidden states, for sequences of ``length`` tokens.

        One pass of the whole skeleton in which each block is replaced by a recorder that hands its input on. No
        weights are needed: what lies before the blocks stands in as zeros that take no memory, because nothing
        recorded may depend on the tokens' values.
        """
        recorders = [Recorder(block) for block in self.blocks]
        recorders[-1].is_last = True
        tokens = torch.zeros((1, length), dtype=torch.long)
        with self._replaced(recorders), _zeros_for_meta(self.model), torch.inference_mode():
            run_until_stopped(self.model, tokens)
        return tuple(BlockInputs(*recorder.received) for recorder in recorders)

    def entry_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that run before the first block (the embeddings), in the model's order."""
        ran: set[str] = set()
        outer = [name for name, _ in self.model.named_parameters(remove_duplicate=False) if not self._in_block(name)]
        hooks = [
            self.model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
                lambda module, arguments, name=name: ran.add(name)
            )
            for name in outer
        ]
        stops = [Stop(block) for block in self.blocks]
        try:
            with self._replaced(stops), _zeros_for_meta(self.model), torch.inference_mode():
                run_until_stopped(self.model, torch.zeros((1, 1), dtype=torch.long))
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(name for name in outer if name in ran)

    @contextmanager
    def before_blocks(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yields a function from tokens [L] to the hidden states [1, L, D] that the first block receives.

        The parameters before the blocks must be filled. The function may be called from several threads.
        """
        with self._replaced([Stop(block) for block in self.blocks]):
            yield lambda tokens: run_until_stopped(self.model, tokens[None])

    @contextmanager
    def before_head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yields a function from the last block's output [1, L, D] to the head's input [1, L, D].

        The parameters between them (final norm) must be filled. The function may be called from several threads.
        """
        head = self.model.get_submodule(self.head or "")

        def stop(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            raise Stopped(arguments[0])

        def head_input(hidden: Tensor) -> Tensor:
            try:
                logits(hidden, torch.arange(hidden.shape[1], device=hidden.device))
            except Stopped as stopped:
                return stopped.hidden
            raise AssertionError("the model ran without calling its head")

        hook = head.register_forward_pre_hook(stop)
        try:
            with self.after_blocks() as logits:
                yield head_input
        finally:
            hook.remove()

    @contextmanager
    def after_blocks(self) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        """Yields a function from the last block's output [1, L, D] and positions [P] to logits [P, V].

        Final norm, head, scaling and soft-capping are the architecture's own; they must be filled. The function
        may be called from several threads.
        """
        injected = threading.local()
        # A few models of transformers 4.57 always compute all logits.
        chooses = "logits_to_keep" in signature(self.model.forward).parameters

        def logits(hidden: Tensor, positions: Tensor) -> Tensor:
            injected.hidden = hidden
            chosen = {"logits_to_keep": positions} if chooses else {}
            output = self.model(inputs_embeds=hidden, use_cache=False, **chosen)
            result: Tensor = output.logits[0]
            return result if chooses else result[positions]

        # What runs before the blocks runs again, on whatever it has, and its result is passed over.
        with self._replaced([Inject(block, injected) for block in self.blocks]), _zeros_for_meta(self.model):
            yield logits

    @contextmanager
    def _replaced(self, stand_ins: Sequence[StandIn]) -> Iterator[None]:
        parent, _, leaf = self._stem.rpartition(".")
        owner = self.model.get_submodule(parent)
        original = getattr(owner, leaf)
        setattr(owner, leaf, nn.ModuleList(stand_ins))
        try:
            yield
        finally:
            setattr(owner, leaf, original)


def clear(module: nn.Module, names: Iterable[str] | None = None) -> None:
    """Give weights back: the named parameters, or all, return to the meta device."""
    chosen = [name for name, _ in module.named_parameters()] if names is None else names
    for name in chosen:
        put(module, name, module.get_parameter(name).to("meta"))


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put one parameter into a module, by its name relative to the module."""
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))


def _refused(error: Exception) -> ConfigError:
    reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    return ConfigError(f"config.json: transformers refuses it: {reason}", hint="Get the model's own config.json again.")


def _decoder_blocks(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """The list of decoder blocks: the one ``ModuleList`` as long as the config says there are layers."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [
        (name, list(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__} has no list of {count} decoder blocks",
            hint="Only models built as a stack of decoder blocks can be run block by block.",
        )
    return min(found, key=lambda item: item[0].count("."))


@contextmanager
def _zeros_for_meta(model: nn.Module) -> Iterator[None]:
    """Zeros of stride 0, which take no memory, in place of the parameters outside the (replaced) blocks."""
    names = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.is_meta]
    for name in names:
        parameter = model.get_parameter(name)
        put(model, name, torch.zeros((), dtype=parameter.dtype).expand(parameter.shape))
    try:
        yield
    finally:
        clear(model, names)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While a model is built, each parameter moves to meta as it is registered; buffers are computed for real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment,unused-ignore]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign,assignment,unused-ignore]
