"""``model_config.yaml`` as a file: YAML that others wrote, read with suspicion, and YAML as litgpt writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llamaconv.errors import ConfigError
from llamaconv.extents import open_regular
from llamaconv.json_files import config_error, parsed, shown

__all__ = ["MAX_BYTES", "fields_in", "read_fields", "yaml_of"]

MAX_BYTES = 100_000
"""PyYAML takes a second for as much; litgpt's own files have about 2,000."""

_PREFIX = "tag:yaml.org,2002:"
_TAGS = frozenset(_PREFIX + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null"))
_MOST_DIGITS = 40


def read_fields(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        CheckpointError: It cannot be read, or is no regular file.
        ConfigError: Over 100 kB, or as ``fields_in``.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist.", hint="It belongs beside the weights.", file=str(path))
    with open_regular(path) as (descriptor, _), open(descriptor, "rb", closefd=False) as file:
        source = file.read(MAX_BYTES + 1)
    if len(source) > MAX_BYTES:
        raise config_error(path, [f"more than {MAX_BYTES} bytes are too many for a configuration"])
    return fields_in(source, path)


def fields_in(source: bytes, path: Path) -> dict[str, Any]:
    """The one mapping (YAML 1.1, UTF-8) that ``source`` must hold; ``path`` is for the messages.

    What JSON could not hold is refused (dates, sets, numbers that are not finite), and so are keys that stand twice or
    are no strings, tags, and aliases, of which a few lines can stand for gigabytes.

    Raises:
        ConfigError: What is wrong.
    """
    try:
        text = json.dumps(_loaded(source.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise config_error(path, [f"not valid UTF-8 (byte {error.start})"]) from error
    except yaml.MarkedYAMLError as error:
        raise config_error(path, [f"not usable: {error.problem} (line {error.problem_mark.line + 1})"]) from error
    except RecursionError as error:
        raise config_error(path, ["not usable: nested too deeply"]) from error
    except (yaml.YAMLError, ValueError) as error:  # a control character, a number without digits
        raise config_error(path, [f"not usable: {str(error).splitlines()[0]}"]) from error
    return parsed(text.encode(), path)


def yaml_of(fields: Mapping[str, Any]) -> bytes:
    """``fields`` as litgpt's ``save_config`` writes them: block style, keys in alphabetical order."""
    return str(yaml.safe_dump(dict(fields))).encode()


def _loaded(text: str) -> object:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("it is no mapping")
        _require_plain(loader, node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _require_plain(loader: yaml.SafeLoader, root: yaml.MappingNode) -> None:
    """Nothing but mappings of strings, sequences and JSON's scalars, each as it is written and in one place.

    Raises:
        yaml.MarkedYAMLError: The first that is something else.
    """
    pending: list[yaml.Node] = [root]
    seen = set[int]()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            raise _refused("something with aliases", node)
        seen.add(id(node))
        if node.tag not in _TAGS or (isinstance(node, yaml.ScalarNode) and node.tag != _implied(loader, node)):
            raise _refused(f"the tag {shown(node.tag)}", node)
        if node.tag == _PREFIX + "int" and len(node.value) > _MOST_DIGITS:
            raise _refused(f"a number of {len(node.value)} digits", node)
        if isinstance(node, yaml.MappingNode):
            keys = set[str]()
            for key, value in node.value:
                if key.tag != _PREFIX + "str":
                    raise _refused("a key that is no string", key)
                if key.value in keys:
                    raise _refused(f"the key {shown(key.value)} stands in it twice", key)
                keys.add(key.value)
                pending += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value


def _implied(loader: yaml.SafeLoader, scalar: yaml.ScalarNode) -> str:
    """The tag that a scalar has by its looks alone."""
    return str(loader.resolve(yaml.ScalarNode, scalar.value, (scalar.style is None, scalar.style is not None)))


def _refused(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
