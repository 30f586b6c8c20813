"""Reads HyperPyYAML as data. The usual loader calls the objects that tags name; this reader treats a tag as text.

The reader makes only the parse tree and reads values from it on request. It constructs nothing, an anchor costs nothing
however often it is repeated, and unknown content does no harm as long as the model does not need it.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from ecapa_jax.convert.readers.pickle_machine import show
from ecapa_jax.errors import ConversionError

_MAX_BYTES = 1 << 18
_MAX_ITEMS = 64
_MAX_HOPS = 16
_PLAIN = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}


@dataclasses.dataclass(frozen=True)
class Unread:
    """A value that is not a plain scalar or a list of scalars, such as a call or a mapping. `text` is for messages."""

    text: str

    def __repr__(self) -> str:
        return self.text


Value: TypeAlias = Any
"""None, bool, int, float, str, a list of these, or `Unread`."""


class Hyperparams:
    """A HyperPyYAML file. Every error message starts with the path of the file."""

    def __init__(self, path: Path):
        """Parses the file.

        Raises:
          ConversionError: the file can't be read, or is not a YAML mapping.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
            if len(text) > _MAX_BYTES:
                raise self.make_error(f"it is larger than {_MAX_BYTES >> 10} kB, so it is not a hyperparams.yaml")
            # BaseLoader does not interpret scalars, and composing calls no constructor.
            self._top = yaml.compose(text.decode("utf-8-sig"), Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise self.make_error(f"it is not YAML ({show(str(error.problem))}{line})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise self.make_error(f"it is not YAML ({show(str(error))})") from error
        except RecursionError as error:
            raise self.make_error("it is nested too deeply") from error
        except OSError as error:
            raise self.make_error(f"it can't be read: {error.strerror}") from error
        if not isinstance(self._top, yaml.MappingNode):
            raise self.make_error("it is not a YAML mapping")

    def make_error(self, message: str) -> ConversionError:
        """Makes an error about this file."""
        return ConversionError(f"{self.path}: {message}")

    def read_part(self, name: str) -> tuple[str, dict[str, Value]] | None:
        """Returns tag and keyword arguments of a named object in `modules` or at the top level; None if there is none.

        Raises:
          ConversionError: the arguments of the object are not a mapping of names to values.
        """
        modules = self._find_child(self._top, "modules")
        node = self._find_child(modules, name) if isinstance(modules, yaml.MappingNode) else None
        node = node or self._find_child(self._top, name)
        if node is None:
            return None
        if isinstance(node, yaml.ScalarNode):
            return (node.tag, {}) if not node.value else (f"{node.tag} {node.value}", {})
        if not isinstance(node, yaml.MappingNode):
            raise self.make_error(f"{name} has positional arguments: write them with their names")
        arguments: dict[str, Value] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<" or key.value in arguments:
                shown = show(str(key.value)) if isinstance(key, yaml.ScalarNode) else "a key that is not text"
                raise self.make_error(
                    f"{name} has {shown}, a merge, a repeated or a nameless argument: write each argument once"
                )
            arguments[key.value] = self._read_value(value)
        return node.tag, arguments

    def _find_child(self, mapping: yaml.MappingNode, name: str) -> yaml.Node | None:
        found = [value for key, value in mapping.value if isinstance(key, yaml.ScalarNode) and key.value == name]
        if len(found) > 1:
            raise self.make_error(f"{name} is defined more than once")
        return self._follow(found[0]) if found else None

    def _follow(self, node: yaml.Node) -> yaml.Node:
        """Returns the node to which `!ref <name>` refers; returns a path or an expression unchanged."""
        for _ in range(_MAX_HOPS):
            if node.tag not in ("!ref", "!copy") or not isinstance(node, yaml.ScalarNode):
                return node
            whole = re.fullmatch(r"\s*<(\w+)>\s*", node.value)
            named = [value for key, value in self._top.value if whole and key.value == whole[1]]
            if len(named) != 1:
                return node
            node = named[0]
        raise self.make_error(f"the reference {show(node.value)} is circular")

    def _read_value(self, node: yaml.Node) -> Value:
        node = self._follow(node)
        if isinstance(node, yaml.ScalarNode):
            if node.tag not in _PLAIN:
                return Unread(f"{show(node.tag)} {show(node.value)}".strip())
            return node.value if node.style is not None else _parse_scalar(node.value)
        if isinstance(node, yaml.SequenceNode) and node.tag in _PLAIN and len(node.value) <= _MAX_ITEMS:
            items = [self._follow(item) for item in node.value]
            if all(isinstance(item, yaml.ScalarNode) for item in items):
                return [self._read_value(item) for item in items]
        return Unread(f"a {'list' if isinstance(node, yaml.SequenceNode) else 'mapping'} ({show(node.tag)})")


def _parse_scalar(text: str) -> Value:
    """Parses a plain scalar if all versions of YAML agree on it; returns text otherwise, as for `no` or `010`."""
    if text in _WORDS:
        return _WORDS[text]
    if re.fullmatch(r"[-+]?(0|[1-9]\d{0,17})", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?", text) and not re.match(r"[-+]?0\d", text):
        return float(text)
    return text
