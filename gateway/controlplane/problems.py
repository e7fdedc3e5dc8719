"""What is wrong with a configuration, and where.

A message names keys, and names that the file itself defines; it never repeats a value, which may be a secret in the
wrong place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

#: Where something is: the keys and list positions that lead to it.
Loc = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LISTED = 12  # names that a hint lists before it gives up


class Mistake(NamedTuple):
    """What a rule found: where, what is wrong, and what to write instead."""

    loc: Loc
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake as people are told of it.  `place` is "" for the file as a whole; `line` counts from 1."""

    place: str
    message: str
    hint: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...], source: str = "configuration") -> None:
        self.problems = problems
        self.source = source
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line a problem, in the form that editors and terminals make a link of: `file:line: place: …`."""
        return [f"{self.source}:{p.line}: {p}" if p.line else f"{self.source}: {p}" for p in self.problems]


def place(loc: Loc) -> str:
    """The name of a place as people write it: `upstreams[1].overrides["gpt-4.1"].tools`."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _BARE_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += '["' + part[:64].encode("unicode_escape").decode() + '"]'
    return text


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    return next(iter(difflib.get_close_matches(word.lower(), sorted(set(known)), n=1, cutoff=0.5)), None)


def nearest(word: str, known: Iterable[str], what: str) -> str:
    """A hint that names the known word most like `word`, or, where none is, the known ones."""
    names = sorted(set(known))
    if meant := closest(word, names):
        return f'did you mean "{meant}"?'
    if not names:
        return f"there is no {what} yet"
    more = " …" if len(names) > _LISTED else ""
    return f"known: {', '.join(names[:_LISTED])}{more}"
