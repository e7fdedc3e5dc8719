"""Reads YAML into plain values with the line of each, and puts the environment in.

A hostile file costs bounded time and memory: its size, its depth and the number of its values (an alias counts each
time it is used) are limited, and nothing but mappings, lists and scalars is ever built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from gateway.controlplane.problems import Loc, Mistake

MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_VALUES = 50_000

_STRING_TAG = "tag:yaml.org,2002:str"
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,3})?")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

# $${ stands for a literal ${; what follows a ${ that is not one of the two forms makes `name` empty.
_REFERENCE = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?")


@dataclass(frozen=True)
class Document:
    """A file's values, the line of each, and what is wrong with it so far.  `holes` are the places whose value could
    not be had because of a mistake; there is None."""

    tree: Any
    lines: Mapping[Loc, int] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    holes: frozenset[Loc] = frozenset()


class UnreadableError(Exception):
    """The text cannot be read as YAML that this module takes; `line` counts from 1."""

    def __init__(self, message: str, hint: str = "", line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line


def read(data: bytes, environ: Mapping[str, str]) -> Document:
    """The values of a YAML file, with `${NAME}` and `${NAME:-default}` replaced in its scalars.

    The replacing comes after the parsing, so a value from the environment can never add keys or lists.  Raises
    UnreadableError where nothing can be made of the bytes.
    """
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"is larger than {MAX_BYTES >> 20} MiB", "this is no configuration file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError("is not UTF-8 text", line=data.count(b"\n", 0, error.start) + 1) from None
    node = _compose(text)
    if node is None:
        return Document({})
    walk = _Walk(environ)
    tree = walk.value(node, ())
    return Document(tree, walk.lines, tuple(walk.mistakes), frozenset(walk.holes))


def substitute(text: str, environ: Mapping[str, str]) -> str:
    """Replaces the references to the environment in `text`.  Raises ValueError, with words for people, for one that
    is malformed or has no value; the words hold the name, never a value."""

    def value(match: re.Match[str]) -> str:
        if match.group() == "$${":
            return "${"
        name, default = match["name"], match["default"]
        if name is None:
            raise ValueError("holds a ${ that is neither ${NAME} nor ${NAME:-default}")
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            raise ValueError(f"needs the environment variable {name}, which is not set")
        return environ[name]

    return _REFERENCE.sub(value, text)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser up to the node tree, with bounded depth; the types of scalars are decided in `_scalar`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.yaml_implicit_resolvers = {}
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UnreadableError(f"is nested deeper than {_MAX_DEPTH} levels", line=self.get_mark().line + 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError("holds a control character", "look for what an editor does not show", line) from None
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError):  # PyYAML passes the number of a "\U…" on as it is
        line = loader.get_mark().line + 1
        raise UnreadableError("holds an escape (\\U…) that is no character", "write the character", line) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(filter(None, (error.context, error.problem)))
        hint = "indent with spaces" if "\\t" in (error.problem or "") else "look at indentation, quotes and colons"
        raise UnreadableError(f"is not valid YAML: {what}", hint, mark.line + 1 if mark else None) from None


@dataclass
class _Walk:
    """Turns nodes into values, and remembers lines and mistakes on the way."""

    environ: Mapping[str, str]
    lines: dict[Loc, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    holes: set[Loc] = field(default_factory=set)

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(loc, line)
        if len(loc) > _MAX_DEPTH:
            raise UnreadableError("holds an alias that contains itself", line=line)
        if len(self.lines) > _MAX_VALUES:
            raise UnreadableError(
                f"holds more than {_MAX_VALUES:,} values", "aliases count each time they are used", line
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*loc, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or node.tag != _STRING_TAG:
            return self._hole(loc, "has a YAML tag (!…), which is not understood here", "leave the tag out")
        return self._scalar(node, loc)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(Mistake(loc, f"has a key in line {line} that is not text"))
                continue
            place = (*loc, key_node.value)
            if key_node.value in values:
                self.mistakes.append(
                    Mistake(place, f"is written twice, in lines {self.lines[place]} and {line}", "keep one of the two")
                )
                continue
            self.lines[place] = line
            values[key_node.value] = self.value(value_node, place)
        return values

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        text: str = node.value
        if "${" in text:
            try:
                return substitute(text, self.environ)
            except ValueError as error:
                hint = "set it, or write ${NAME:-default}" if "not set" in str(error) else "write $${ for a literal ${"
                return self._hole(loc, str(error), hint)
        return text if node.style else _plain(text)

    def _hole(self, loc: Loc, message: str, hint: str) -> None:
        self.holes.add(loc)
        self.mistakes.append(Mistake(loc, message, hint))


def _plain(text: str) -> Any:
    """The value of a scalar without quotes, by the core schema of YAML 1.2: `no`, `on` and `2024-10-21` are text."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
