"""What is wanted of the keys that are made while the gateway runs.

Records are whole and right, or they are not made: whoever holds one need not look again.  The moves are pure: each
takes a record and gives the next one, or says in a sentence why that cannot be; to store it is somebody else's part
(`keyrecords.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypedDict, Unpack

from gateway.controlplane.values import NAME
from gateway.domain.call import Endpoint
from gateway.domain.errors import Conflict
from gateway.domain.limits import Budget, Limits
from gateway.domain.principal import ADAPTERS_RIGHT, PRIVILEGED_PARAMETERS, Principal

RIGHTS = frozenset({*PRIVILEGED_PARAMETERS, ADAPTERS_RIGHT})
ENDPOINTS = frozenset(endpoint.value for endpoint in Endpoint)

MAX_TEXT = 256  # characters of an owner, a team, a pattern, a value of the metadata
MAX_ITEMS = 256  # patterns of one key
MAX_METADATA = 16  # entries
_METADATA_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_MAX_BUDGETS = 8


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key.

    `digest`: of its secret, 32 bytes, by the pepper of the name `pepper`.  `rotation`: how many secrets it had before.
    `previous`: the digest of the one before, let in until `previous_until`.  All times are Unix seconds.  `endpoints`
    and `expires` None: without limit.  `revoked` None: it is not.  What the rest means is said at `Principal`.

    Raises ValueError for what cannot be.
    """

    id: str
    name: str
    digest: bytes
    pepper: str
    created: int
    rotation: int = 0
    previous: bytes | None = None
    previous_until: int = 0
    owner: str = ""
    team: str = ""
    models: tuple[str, ...] = ("*",)
    endpoints: tuple[str, ...] | None = None
    allow: tuple[str, ...] = ()
    limits: Limits | None = None
    budgets: tuple[Budget, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    expires: int | None = None
    revoked: int | None = None
    log_content: bool = False

    def __post_init__(self) -> None:
        for wrong, what in (
            (NAME.fullmatch(self.name) is None, f"its name does not match {NAME.pattern}"),
            (len(self.digest) != 32 or len(self.previous or self.digest) != 32, "a digest has 32 bytes"),
            (not all(_is_text(text) for text in (self.owner, self.team)), _TEXTS),
            (not 1 <= len(self.models) <= MAX_ITEMS, f"it has 1 to {MAX_ITEMS} patterns of models"),
            (not all(_is_pattern(pattern) for pattern in self.models), "a pattern is empty, too long, or has a space"),
            (self.endpoints is not None and not ENDPOINTS.issuperset(self.endpoints), _endpoints()),
            (not RIGHTS.issuperset(self.allow), f"its rights are none of {', '.join(sorted(RIGHTS))}"),
            (len(self.budgets) > _MAX_BUDGETS, f"it has more than {_MAX_BUDGETS} budgets"),
            (len(self.metadata) > MAX_METADATA, f"its metadata has more than {MAX_METADATA} entries"),
            (not all(map(_METADATA_NAME.fullmatch, self.metadata)), f"metadata's names match {_METADATA_NAME.pattern}"),
            (not all(map(_is_text, self.metadata.values())), _TEXTS),
        ):
            if wrong:
                raise ValueError(f"the key {self.name} cannot be: {what}")

    def principals(self) -> Iterator[tuple[bytes, Principal]]:
        """Whom its secrets let in, by their digests; nobody when it is revoked."""
        if self.revoked is not None:
            return
        principal = Principal(
            self.name,
            frozenset(self.allow),
            self.models,
            key=self.id,
            team=self.team,
            endpoints=None if self.endpoints is None else frozenset(self.endpoints),
            expires=self.expires,
            limits=self.limits,
            budgets=self.budgets,
            metadata=self.metadata,
            rotation=self.rotation,
            log_content=self.log_content,
        )
        yield self.digest, principal
        if self.previous is not None:
            until = min(self.previous_until, math.inf if self.expires is None else self.expires)
            yield self.previous, replace(principal, expires=until, rotation=self.rotation - 1)

    def live(self, now: float) -> frozenset[int]:
        """The rotations whose secrets are let in at this moment."""
        return frozenset(who.rotation for _, who in self.principals() if who.expires is None or now < who.expires)


class Settings(TypedDict, total=False):
    """What can be set of a key: see `KeyRecord`."""

    name: str
    owner: str
    team: str
    models: tuple[str, ...]
    endpoints: tuple[str, ...] | None
    allow: tuple[str, ...]
    limits: Limits | None
    budgets: tuple[Budget, ...]
    metadata: Mapping[str, str]
    expires: int | None
    log_content: bool


def configured(record: KeyRecord, **settings: Unpack[Settings]) -> KeyRecord:
    """The settings that are given are the key's.  Raises ValueError, and Conflict when it is revoked."""
    _alive(record)
    return replace(record, **settings)


def rotated(record: KeyRecord, digest: bytes, pepper: str, *, now: int, grace: int) -> KeyRecord:
    """The key has another secret; the one before is let in for `grace` seconds more, and those before that no longer.
    Raises Conflict when it is revoked, or made with another pepper and so no key to anything."""
    _alive(record)
    grace = grace if record.pepper == pepper else 0
    return replace(
        record,
        digest=digest,
        pepper=pepper,
        rotation=record.rotation + 1,
        previous=record.digest if grace else None,
        previous_until=now + grace if grace else 0,
    )


def revoked(record: KeyRecord, *, now: int) -> KeyRecord:
    """Nobody is let in with it any more, for good.  Nothing changes when it was revoked before."""
    return record if record.revoked is not None else replace(record, revoked=now, previous=None, previous_until=0)


def _alive(record: KeyRecord) -> None:
    if record.revoked is not None:
        raise Conflict(f"The key {record.name} ({record.id}) is revoked, which is for good: create another one.")


_TEXTS = f"a text has at most {MAX_TEXT} characters, none of them a control character"


def _endpoints() -> str:
    return f"endpoints are of {', '.join(sorted(ENDPOINTS))}"


def _is_text(text: str) -> bool:
    return len(text) <= MAX_TEXT and not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text)


def _is_pattern(pattern: str) -> bool:
    return _is_text(pattern) and re.fullmatch(r"\S+", pattern) is not None
