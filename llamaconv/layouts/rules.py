"""Layouts as invertible tables. Hugging Face names are the hub: every layout says how it differs from them, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from llamaconv.config import ModelConfig
from llamaconv.errors import UnsupportedError
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.operations import Identity, Operation

__all__ = ["Layout", "Rule", "RuleTemplate", "between"]


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
    """A rule for each layer (``{layer}`` in its names) or for the whole model, where the model has its tensors.

    Attributes:
        hub, local: Names.
        operation: From the config.
    """

    hub: tuple[str, ...]
    local: tuple[str, ...]
    operation: Callable[[ModelConfig], Operation] = lambda config: Identity()


@dataclass(frozen=True)
class Layout:
    """How a tool names, fuses and permutes a model's tensors.

    Attributes:
        name: On the command line.
        templates: The table, in the layout's order.
        obstacles: Why the layout cannot hold a model, one fact each; empty if it can.
        stores_tied_head: Whether a head that is tied to the embedding is stored all the same.
    """

    name: str
    templates: tuple[RuleTemplate, ...]
    obstacles: Callable[[ModelConfig], list[str]] = lambda config: []
    stores_tied_head: bool = False

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        """The table for one model: from the hub to the layout.

        Raises:
            UnsupportedError: The layout cannot hold the model, or has no place for some of its tensors; all facts are
                listed.
        """
        tensors = expected_tensors(config)
        if tensors is None:
            raise UnsupportedError(f"no layout but Hugging Face's is known for {config.model_type}")
        rules = tuple(self._expand(config, tensors))
        placed = {name for rule in rules for name in rule.hub}
        facts = self.obstacles(config) + [f"it has no place for {name}" for name in tensors if name not in placed]
        if facts:
            raise UnsupportedError(
                f"the layout {self.name} cannot hold this model:\n" + "\n".join(facts),
                hint="litgpt holds every family; Hugging Face's own layout does in any case.",
            )
        return rules

    def _expand(self, config: ModelConfig, tensors: Mapping[str, tuple[int, ...]]) -> Iterator[Rule]:
        for repeated, group in groupby(self.templates, key=lambda template: "{layer}" in template.hub[0]):
            templates = list(group)
            for layer in range(config.layers if repeated else 1):
                for template in templates:
                    hub = _at(layer, template.hub)
                    if all(name in tensors for name in hub):
                        yield Rule(hub, _at(layer, template.local), template.operation(config))


def between(source: Iterable[Rule], target: Iterable[Rule]) -> Iterator[tuple[tuple[Rule, ...], tuple[Rule, ...]]]:
    """How two layouts hang together: the smallest groups of rules that share hub tensors.

    Args:
        source, target: Rules of two layouts for one model.

    Yields:
        The inverse rules that bring a group's tensors to the hub, and the rules that take them on from there. Within
        a group every hub tensor is made once and used once; groups share none.
    """
    makers = [rule.inverse() for rule in source]
    made_by = {name: index for index, rule in enumerate(makers) for name in rule.local}
    groups: list[tuple[set[int], list[Rule]]] = []
    for user in target:
        needed, users = {made_by[name] for name in user.hub}, [user]
        apart = []
        for members, others in groups:
            if members & needed:
                needed, users = members | needed, others + users
            else:
                apart.append((members, others))
        groups = [*apart, (needed, users)]
    for members, users in groups:
        yield tuple(makers[index] for index in sorted(members)), tuple(users)


def _at(layer: int, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.replace("{layer}", str(layer)) for name in names)
