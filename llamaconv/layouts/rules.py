"""Layouts as invertible tables. Hugging Face names are the hub: every layout says how it differs from them, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig
from llamaconv.errors import UnsupportedError
from llamaconv.layouts.description import Described, Native
from llamaconv.layouts.hugging_face import HEAD, expected_tensors
from llamaconv.layouts.operations import Chain, Identity, Operation, Parallel
from llamaconv.layouts.ranks import Replicate
from llamaconv.tensors import TensorSpec

__all__ = ["EMBEDDING", "Layout", "Rule", "RuleTemplate", "local_specs"]

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Rule:
    """Some tensors of the hub, what they are called in a layout, and what happens to them on the way there."""

    hub: tuple[str, ...]
    local: tuple[str, ...]
    operation: Operation

    def inverse(self) -> Rule:
        """The way back: hub and layout change places."""
        return Rule(self.local, self.hub, self.operation.inverse())


@dataclass(frozen=True)
class RuleTemplate:
    """A rule for each layer (``{layer}`` in its names), each expert of it (``{expert}``), or for the whole model.

    Attributes:
        hub, local: Names.
        operation: From the config.
    """

    hub: tuple[str, ...]
    local: tuple[str, ...]
    operation: Callable[[ModelConfig], Operation] = lambda config: Identity()

    def at(self, layer: int, expert: int, operation: Operation) -> Rule:
        """The rule for one layer and expert."""
        return Rule(_at(layer, expert, self.hub), _at(layer, expert, self.local), operation)


@dataclass(frozen=True)
class Layout:
    """How a tool names, fuses and permutes a model's tensors, and describes the model.

    Attributes:
        name: On the command line.
        templates: The table, in the layout's order; empty for the hub itself.
        obstacles: Why the layout cannot hold a model, one fact each; empty if it can.
        stores_tied_head: Whether a head that is tied to the embedding is stored all the same.
        ranks: Files over which tensors are split; with more than one, local names begin with the rank ("00/").
        config_file: Name of the description, None if the layout has none.
        description: The content of that file for a model.
        read_fields: Reads the description.
        described: What the layout's own files say, as a config.json.
        tokenizers: Files of which its tools need one; none if they have no say.
        warnings: What the layout's code does slightly differently for a model, one fact each.
    """

    name: str
    templates: tuple[RuleTemplate, ...] = ()
    obstacles: Callable[[ModelConfig], list[str]] = lambda config: []
    stores_tied_head: bool = False
    ranks: int = 1
    config_file: str | None = None
    description: Callable[[ModelConfig], bytes] = lambda config: b""
    read_fields: Callable[[Path], Mapping[str, Any]] = lambda path: {}
    described: Callable[[Native], Described] | None = None
    tokenizers: tuple[str, ...] = ()
    warnings: Callable[[ModelConfig], list[str]] = lambda config: []

    def rules(self, config: ModelConfig, *, head_stored: bool | None = None) -> tuple[Rule, ...]:
        """The table for one model: from the hub to the layout.

        Args:
            config: The model.
            head_stored: Whether a tied head is there all the same; None for the layout's habit.

        Raises:
            UnsupportedError: The layout cannot hold the model, or has no place for some of its tensors; all facts are
                listed.
        """
        tensors = expected_tensors(config)
        if tensors is None:
            raise UnsupportedError(
                f"config.json: no layout but Hugging Face's is known for the model_type {config.model_type!r}.",
                hint="Only --to hf takes it, from Hugging Face's own layout.",
            )
        twice = config.tied and (self.stores_tied_head if head_stored is None else head_stored)
        rules = tuple(self._expand(config, tensors, twice))
        placed = {name for rule in rules for name in rule.hub}
        facts = self.obstacles(config) + [f"it has no place for {name}" for name in tensors if name not in placed]
        if facts:
            raise UnsupportedError(
                f"The layout {self.name} cannot hold this model:\n" + "\n".join(facts),
                hint="Hugging Face's own layout holds every model, litgpt most.",
                layout=self.name,
                obstacles=facts,
            )
        return rules

    def _expand(self, config: ModelConfig, tensors: Mapping[str, tuple[int, ...]], twice: bool) -> Iterator[Rule]:
        hub = dict.fromkeys((*tensors, HEAD))
        templates = self.templates or tuple(RuleTemplate((name,), (name,)) for name in hub)
        heads = [template for template in templates if template.hub == (HEAD,)]
        for repeated, group in groupby(templates, key=lambda template: "{layer}" in template.hub[0]):
            built = [(template, template.operation(config)) for template in group]
            for layer in range(config.layers if repeated else 1):
                for template, operation in built:
                    if twice and template.hub == (EMBEDDING,):
                        both = Parallel((operation, *(head.operation(config) for head in heads)))
                        local = template.local + tuple(name for head in heads for name in head.local)
                        yield Rule(template.hub, local, Chain((Replicate(2), both)))
                        continue
                    for expert in range((config.experts or 0) if "{expert}" in template.hub[0] else 1):
                        rule = template.at(layer, expert, operation)
                        if all(name in tensors for name in rule.hub):
                            yield rule


def local_specs(rules: Iterable[Rule], hub: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """What a layout stores of a model, by running each operation on meta tensors.

    Raises:
        ValueError: An operation cannot take a tensor; names the tensors.
    """
    specs: dict[str, TensorSpec] = {}
    for rule in rules:
        inputs = tuple(torch.empty(hub[name].shape, dtype=hub[name].dtype, device="meta") for name in rule.hub)
        try:
            outputs = rule.operation.apply(inputs)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{', '.join(rule.hub)}: {error}") from error
        specs |= {name: TensorSpec.of(name, tensor) for name, tensor in zip(rule.local, outputs, strict=True)}
    return specs


def _at(layer: int, expert: int, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.replace("{layer}", str(layer)).replace("{expert}", str(expert)) for name in names)
