"""The log of administrative acts: rows that hold each other fast.

Each row has the SHA-256 over the hash of the row before it and its own canonical JSON.  So whoever changes, removes,
adds or moves a row would have to write all that follow anew.  What the chain alone cannot show is that its last rows
are missing; for that its head, the newest hash, must have been kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

#: What the first row stands on.
GENESIS = "0" * 64

DONE = "done"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: `admin`, or `key NAME`, and from which address."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Act:
    """What was done to what.  `outcome`: DONE, or the code of the refusal.  `detail`: what else is to be known of it;
    no secret is in it."""

    by: Actor
    act: str
    target: str
    outcome: str = DONE
    detail: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)


@dataclass(frozen=True, slots=True)
class Row:
    """An act in the log.  `number` counts from 1; `at`: Unix time in microseconds; `detail`: JSON."""

    number: int
    at: int
    who: str
    address: str
    act: str
    target: str
    outcome: str
    detail: str
    hash: str = ""


def sealed(act: Act, number: int, at: int, before: str) -> Row:
    """The row of an act, behind the one whose hash is `before`."""
    detail = _canonical(dict(act.detail))
    row = Row(number, at, act.by.name, act.by.address, act.act, act.target, act.outcome, detail)
    return Row(**{**asdict(row), "hash": _hash(row, before)})


class Broken(Exception):
    """The chain does not hold; the text names the first row that does not fit, and how."""


def verified(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of a whole log in its order, each when it is known to fit.  Raises Broken at the first that does not."""
    before = GENESIS
    for number, row in enumerate(rows, 1):
        if row.number != number:
            raise Broken(f"row {number}: in its place stands row {row.number}")
        if row.hash != _hash(row, before):
            raise Broken(f"row {number}: its hash does not fit what it says and the row before it")
        before = row.hash
        yield row


def _hash(row: Row, before: str) -> str:
    said = asdict(row)
    del said["hash"]
    return hashlib.sha256(before.encode() + _canonical(said).encode()).hexdigest()


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
