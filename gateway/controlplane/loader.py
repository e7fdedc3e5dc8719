"""The one way to a configuration: reads a file, puts the environment in, and holds it against every rule.

All mistakes are found in one go.  Where a part is wrong in itself, the rules judge the rest without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.controlplane import rules
from gateway.controlplane.config import Config
from gateway.controlplane.document import MAX_BYTES, Document, UnreadableError, read
from gateway.controlplane.problems import ConfigError, Loc, Mistake, Problem, closest, place
from gateway.controlplane.wording import describe, known_keys

__all__ = ["ConfigError", "Problem", "from_mapping", "load"]


def load(path: Path, environ: Mapping[str, str], overrides: Mapping[tuple[str, str], Any] | None = None) -> Config:
    """The configuration in a YAML file.  Raises ConfigError with everything that is wrong with it.

    `overrides` stand in for what the file says, by section and key, and are held against the same rules.
    """
    try:
        with path.open("rb") as file:
            document = read(file.read(MAX_BYTES + 1), environ)
    except OSError as error:
        raise ConfigError((Problem("", f"cannot be read: {error.strerror}"),), str(path)) from None
    except UnreadableError as error:
        raise ConfigError((Problem("", error.message, error.hint, error.line),), str(path)) from None
    for (section, key), value in (overrides or {}).items():
        if isinstance(document.tree, dict):
            current = document.tree.get(section) or {}
            document.tree[section] = {**current, key: value} if isinstance(current, dict) else current
    return _build(document, str(path))


def from_mapping(tree: Mapping[str, Any]) -> Config:
    """The configuration in plain values, with nothing substituted.  Raises ConfigError."""
    return _build(Document(dict(tree)), "configuration")


def _build(document: Document, source: str) -> Config:
    if document.tree is None:
        document = Document({}, document.lines)
    config, mistakes = _judge(document)
    if config is None or mistakes:
        problems = {(place(m.loc), m.message): _problem(m, document.lines) for m in mistakes}
        raise ConfigError(tuple(sorted(problems.values(), key=lambda p: p.line or 0)), source)
    return config


def _judge(document: Document) -> tuple[Config | None, list[Mistake]]:
    """The configuration, as far as it is right, and all mistakes.

    Each round leaves out what was found wrong and looks at the rest; what is then missing is no mistake of its own.
    It ends because each round leaves out more.
    """
    mistakes = list(document.mistakes)
    bad = set(document.holes)  # left out
    meant: set[Loc] = set()  # keys that are there under a wrong name
    while True:
        origin: dict[Loc, Loc] = {}
        tree = _without(document.tree, bad, (), (), origin)
        config, found = _shaped(tree, origin)
        meant.update(each.meant for each in found if each.meant is not None)
        mistakes += [each.mistake for each in found if not _touches(each.mistake.loc, bad | meant)]
        fresh = {each.culprit for each in found} - bad
        if not fresh or () in fresh:
            break
        bad |= fresh
    if config is not None:
        dropped = frozenset(_names(document.tree) - _names(tree))
        broken = [m._replace(loc=_original(m.loc, origin)) for m in rules.check(config, dropped)]
        mistakes += [mistake for mistake in broken if not _touches(mistake.loc, bad | meant)]
    return config, mistakes


def _shaped(tree: Any, origin: Mapping[Loc, Loc]) -> tuple[Config | None, list[_Found]]:
    """The configuration, or what is wrong with single values."""
    try:
        return Config.model_validate(tree), []
    except ValidationError as error:
        found = [_Found(detail, origin) for detail in error.errors(include_url=False)]
    places = [each.mistake.loc for each in found]
    # For pydantic, a list is too short when its entries are wrong.
    return None, [e for e in found if not any(_within(place, e.mistake.loc) for place in places)]


class _Found:
    """One of pydantic's errors, by the places of the file."""

    def __init__(self, detail: ErrorDetails, origin: Mapping[Loc, Loc]) -> None:
        loc = tuple(part for part in detail["loc"] if part != "[key]")
        there = _original(loc, origin)
        self.mistake = Mistake(there, *describe(detail, loc))
        #: The place to leave out to go on without the error.  What is missing cannot be left out; its parent can.
        self.culprit = there[:-1] if detail["type"] == "missing" else there
        #: The place of the key that an unknown key was probably meant to be.
        self.meant: Loc | None = None
        if detail["type"] == "extra_forbidden":
            key = closest(str(loc[-1]), known_keys(loc[:-1]))
            self.meant = (*there[:-1], key) if key is not None and (*loc[:-1], key) not in origin else None


def _without(value: Any, bad: set[Loc], old: Loc, new: Loc, origin: dict[Loc, Loc]) -> Any:
    """A copy of `value` without the places in `bad`; `origin` learns where each place of the copy was in the file."""
    origin[new] = old
    if isinstance(value, Mapping):
        return {
            key: _without(item, bad, (*old, key), (*new, key), origin)
            for key, item in value.items()
            if (*old, key) not in bad
        }
    if isinstance(value, list | tuple):
        kept = [index for index in range(len(value)) if (*old, index) not in bad]
        return [_without(value[o], bad, (*old, o), (*new, n), origin) for n, o in enumerate(kept)]
    return value


def _original(loc: Loc, origin: Mapping[Loc, Loc]) -> Loc:
    """Where `loc` was in the file; the last parts may name what is not there."""
    known = next(loc[:length] for length in range(len(loc), -1, -1) if loc[:length] in origin)
    return origin[known] + loc[len(known) :]


def _touches(loc: Loc, bad: Iterable[Loc]) -> bool:
    """Whether `loc` is, holds, or lies in one of these places: what is found there may only follow from them."""
    return any(loc == other or _within(loc, other) or _within(other, loc) for other in bad)


def _within(inner: Loc, outer: Loc) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _names(tree: Any) -> set[str]:
    """What the entries of `upstreams` and `models` are called, right or wrong."""
    names = set()
    for section, key in (("upstreams", "name"), ("models", "id")):
        entries = tree.get(section) if isinstance(tree, Mapping) else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, Mapping) and isinstance(entry.get(key), str):
                names.add(entry[key])
    return names


def _problem(mistake: Mistake, lines: Mapping[Loc, int]) -> Problem:
    """The mistake with its line: that of its place or, where nothing is there, of the nearest thing around it."""
    around = (mistake.loc[:length] for length in range(len(mistake.loc), -1, -1))
    line = next((lines[loc] for loc in around if loc in lines), None)
    return Problem(place(mistake.loc), mistake.message, mistake.hint, line)
