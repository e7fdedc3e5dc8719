"""Matches the keys of rank_pattern and alpha_pattern against module names.

peft and vLLM take a key as a regular expression for the end of a module's name, `(.*\\.)?(KEY)$`, with a backtracking
matcher: a hostile key stops an engine. Here a key is followed through a name by the set of places it can have reached,
which takes time in proportion to both; and only keys are understood that a backtracking matcher does quickly, too.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

MAX_KEY = 256  # characters
_MAX_OPEN = 2  # of `*` and `+`, of `?`, and of groups, each: backtracking is polynomial in the name, of this degree

_DIGITS = frozenset(string.digits)
_WORD = frozenset(string.ascii_letters) | _DIGITS | {"_"}
_ESCAPES: Mapping[str, frozenset[str]] = {"d": _DIGITS, "w": _WORD, ".": frozenset("."), "-": frozenset("-")}

# What a key may consist of: text, a group of plain alternatives, or one character of some kind, perhaps repeated.
_ATOM = re.compile(
    r"(?P<text>(?:[\w-]|\\[.-])+(?![*+?{]))"
    r"|\((?:\?:)?(?P<group>[\w-]+(?:\|[\w-]+)*)\)(?![*+?{])"
    r"|(?:(?P<literal>[\w-]|\\[.-])|\\(?P<escape>[dw])|(?P<any>\.)|\[(?P<not>\^?)(?P<kinds>(?:\\[dw.-]|\w-\w|[\w.])+)\])"
    r"(?P<repeat>[*+?]?)(?![*+?{])",
    re.ASCII,
)
_KIND = re.compile(r"\\(?P<escape>[dw.-])|(?P<first>\w)-(?P<last>\w)|(?P<one>[\w.])", re.ASCII)

# A token of any regular expression and what repeats it.
_TOKEN = re.compile(
    r"(?P<open>\((?:\?(?:P?<\w+>|[^)]?[:=!]|[a-z]+:))?)|(?P<choice>\|)"
    r"|(?:(?P<close>\))|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]?|.)(?P<repeat>(?:[*+?]|\{[^}]*\})?)[?+]?",
    re.DOTALL,
)
# Unsloth writes target_modules with five.
_MAX_REPETITIONS = 8


class UnsupportedPatternError(ValueError):
    """The key is not one of those understood here; the text says why."""


@dataclass(frozen=True, slots=True)
class _Words:
    """One of some texts."""

    words: tuple[str, ...]

    def advance(self, name: str, places: set[int]) -> set[int]:
        return {place + len(word) for place in places for word in self.words if name.startswith(word, place)}


@dataclass(frozen=True, slots=True)
class _Characters:
    """Characters of a kind (or of any other kind): `least` 0 or 1 of them, or more where `repeated`."""

    kind: frozenset[str]
    inverted: bool
    least: int
    repeated: bool

    def advance(self, name: str, places: set[int]) -> set[int]:
        reached = set(places) if self.least == 0 else set()
        after = -1  # the place after the last character taken
        for place in range(min(places), len(name)):
            if (place in places or (self.repeated and place == after)) and self._takes(name[place]):
                after = place + 1
                reached.add(after)
        return reached

    def _takes(self, character: str) -> bool:
        return (character in self.kind) is not self.inverted


@dataclass(frozen=True, slots=True)
class Pattern:
    """A key of rank_pattern or alpha_pattern. `tail` is the text that every name it matches ends in."""

    anchored: bool
    steps: tuple[_Words | _Characters, ...]
    tail: str

    def matches(self, name: str) -> bool:
        """True where peft and vLLM apply the key to the module `name`."""
        if not name.endswith(self.tail):
            return False
        places = {0}
        if not self.anchored:
            places.update(place for place, character in enumerate(name, start=1) if character == ".")
        for step in self.steps:
            places = step.advance(name, places)
            if not places:
                return False
        return len(name) in places


def parse(key: str) -> Pattern:
    """Raises UnsupportedPatternError for a key that is beyond names, or that could hang a backtracking matcher."""
    if len(key) > MAX_KEY:
        raise UnsupportedPatternError(f"it is longer than {MAX_KEY} characters")
    body = key.removeprefix("^").removesuffix("$")
    steps: list[_Words | _Characters] = []
    counts = {"groups": 0, "optional characters": 0, "repetitions": 0}
    position = 0
    while position < len(body):
        atom = _ATOM.match(body, position)
        if atom is None:
            raise UnsupportedPatternError(f"{body[position : position + 20]!a} is no part of a simple pattern")
        counts["groups"] += atom["group"] is not None
        counts["optional characters"] += atom["repeat"] == "?"
        counts["repetitions"] += atom["repeat"] in ("*", "+")
        steps.append(_step(atom))
        position = atom.end()
    for what, count in counts.items():
        if count > _MAX_OPEN:
            raise UnsupportedPatternError(f"it has {count} {what}, more than {_MAX_OPEN}")
    last = steps[-1] if steps else None
    tail = last.words[0] if isinstance(last, _Words) and len(last.words) == 1 else ""
    return Pattern(key.startswith("^"), tuple(steps), tail)


def _step(atom: re.Match[str]) -> _Words | _Characters:
    if atom["text"]:
        return _Words((atom["text"].replace("\\", ""),))
    if atom["group"]:
        return _Words(tuple(atom["group"].split("|")))
    repeat: str = atom["repeat"]
    least, repeated = int(repeat in ("", "+")), repeat in ("*", "+")
    if atom["any"]:
        return _Characters(frozenset("\n"), inverted=True, least=least, repeated=repeated)
    if atom["literal"]:
        return _Characters(frozenset(atom["literal"][-1]), inverted=False, least=least, repeated=repeated)
    if atom["escape"]:
        return _Characters(_ESCAPES[atom["escape"]], inverted=False, least=least, repeated=repeated)
    kinds = frozenset[str]().union(*map(_characters, _KIND.finditer(atom["kinds"])))
    return _Characters(kinds, inverted=bool(atom["not"]), least=least, repeated=repeated)


def _characters(kind: re.Match[str]) -> frozenset[str]:
    if kind["escape"]:
        return _ESCAPES[kind["escape"]]
    if kind["one"]:
        return frozenset(kind["one"])
    if kind["first"] > kind["last"]:
        raise UnsupportedPatternError(f"its range {kind[0]!a} is backwards")
    return frozenset(map(chr, range(ord(kind["first"]), ord(kind["last"]) + 1)))


def explodes(regex: str) -> bool:
    """True where a backtracking matcher could take exponential time over this regular expression, or nearly so.

    That is where a repeated group repeats or chooses within, as in (a+)+ and (a|b)*, or where very many repetitions
    follow each other. For the free text of `target_modules`, which vLLM never runs and peft does.
    """
    groups = [False]  # of each open group, and of the whole: does it repeat or choose within?
    repetitions = 0
    for token in _TOKEN.finditer(regex):
        repeat = token["repeat"] or ""
        repeated = repeat not in ("", "?")
        repetitions += repeated
        if token["open"]:
            groups.append(False)
        elif token["close"]:
            within = groups.pop() if len(groups) > 1 else True
            if within and repeated:
                return True
            groups[-1] |= within
        groups[-1] |= bool(repeat or token["choice"])
    return repetitions > _MAX_REPETITIONS
