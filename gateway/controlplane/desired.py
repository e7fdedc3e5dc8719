"""What people want of the adapters: their versions, which one the plain name points to, who gets a share beside it.

Records are whole and consistent, or they are not made: whoever holds one need not look again.  The moves are pure. Each
takes a record and gives the next one, or says in a sentence why that cannot be; to store it is somebody else's part
(`records.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, Unpack

from gateway.domain.errors import Conflict, InvalidRequest, NotFound

Load = Literal["eager", "lazy"]

_WHOLE = 100.0  # percent
_SHORT = 12  # hex digits that name a version in short
_DIGITS = re.compile(rf"[0-9a-f]{{{_SHORT},64}}", re.ASCII)
_SHOWN = 10  # versions that a sentence lists


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One content of an adapter, as it was added.

    `digest`: 64 hex digits.  `source`: where it came from, as people gave it.  `watched`: a watched folder brought it,
    and takes it away again.  `base`: what the adapter says it was trained on.  `size`: bytes of an engine's memory.
    `fits`: fingerprints of the base models that it was judged to fit ("": judged without one on this machine).
    `added`: Unix seconds.
    """

    digest: str
    source: str
    watched: bool
    base: str
    rank: int
    size: int
    fits: tuple[str, ...]
    added: int

    @property
    def version(self) -> str:
        """The first 12 hex digits of the digest."""
        return self.digest[:_SHORT]


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """A version that gets `weight` percent of the plain name's traffic."""

    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """An adapter: everything that is wanted of one plain name.

    `versions`: oldest first.  `current`: the digest that the plain name points to.  `history`: what it pointed to
    before, each version once, newest last.  `canaries`: in the order in which they began; what they leave is the
    current version's.  `salt`: of the hash that deals the traffic out; there while there is a canary.  `next`: becomes
    current by itself as soon as it is Ready.  `pinned`: the current version is never evicted.  `load` None: as the
    configuration says.  `upstreams` None: wherever it fits.

    Raises ValueError when these contradict each other.
    """

    name: str
    versions: tuple[VersionRecord, ...]
    current: str
    history: tuple[str, ...] = ()
    canaries: tuple[CanaryRecord, ...] = ()
    salt: str = ""
    next: str | None = None
    pinned: bool = False
    load: Load | None = None
    upstreams: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        held = {version.digest for version in self.versions}
        beside = [canary.digest for canary in self.canaries]
        for wrong, what in (
            (len({version.version for version in self.versions}) < len(self.versions), "a version stands there twice"),
            (self.current not in held, "current is none of its versions"),
            (not _some_of(self.history, held - {self.current}), "history is not of its other versions, each once"),
            (not _some_of(beside, held - {self.current}), "canaries are not of its other versions, each once"),
            (not all(0 < canary.weight <= _WHOLE for canary in self.canaries), "a canary's weight is no percentage"),
            (_total(self.canaries) > _WHOLE, "the canaries get more than all traffic"),
            (bool(self.salt) != bool(self.canaries), "there is a salt without a canary, or a canary without a salt"),
            (self.next is not None and self.next not in held - {self.current}, "next is none of its other versions"),
            (self.upstreams is not None and not self.upstreams, "it may be on no upstream"),
        ):
            if wrong:
                raise ValueError(f"the record of adapter {self.name} is damaged: {what}")


class Settings(TypedDict, total=False):
    """What can be set of an adapter beside its versions: see `AdapterRecord`."""

    pinned: bool
    load: Load | None
    upstreams: tuple[str, ...] | None


def find(record: AdapterRecord, digest: str) -> VersionRecord:
    """The version whose digest begins with these 12 or more hex digits.  Raises NotFound."""
    if _DIGITS.fullmatch(wanted := digest.lower()):
        for version in record.versions:
            if version.digest.startswith(wanted):
                return version
    raise NotFound(f"{record.name} has no version {digest[:64]}; it has {_listed(record.versions)}")


def added(
    record: AdapterRecord | None, name: str, version: VersionRecord, *, promote: bool, keep: int
) -> AdapterRecord:
    """`version` is one of the adapter's; the first one is current at once, a later one with `promote` as soon as it is
    Ready.

    Of more than `keep` versions the oldest go that nothing points to: not the current one, the one to come, a canary,
    the one that a rollback leads to, nor this one.  A version that is known already keeps its place and is as it was
    judged last; one that somebody added by hand does not become a watched folder's.
    Raises Conflict when another version has the same short name.
    """
    if record is None:
        return AdapterRecord(name, (version,), version.digest)
    digest = version.digest
    known = next((v for v in record.versions if v.version == version.version), None)
    if known is None:
        versions = (*record.versions, version)
    elif known.digest != digest:
        raise Conflict(f"{name}@{version.version} is another version already, whose digest begins alike")
    else:
        versions = tuple(_again(v, version) if v is known else v for v in record.versions)
    upcoming = digest if promote else record.next
    pointed = {record.current, upcoming, digest, *record.history[-1:], *(canary.digest for canary in record.canaries)}
    spare = [v.digest for v in versions if v.digest not in pointed][: max(0, len(versions) - keep)]
    return _narrowed(
        record,
        tuple(v for v in versions if v.digest not in spare),
        current=record.current,
        history=record.history,
        upcoming=upcoming,
    )


def judged(record: AdapterRecord, digest: str, fits: tuple[str, ...]) -> AdapterRecord:
    """A version was held against other base models, and fits these.  Raises NotFound."""
    version = find(record, digest)
    return replace(record, versions=tuple(replace(v, fits=fits) if v is version else v for v in record.versions))


def awaited(record: AdapterRecord, digest: str) -> AdapterRecord:
    """The version becomes current as soon as it is Ready; the current one: nothing else does.  Raises NotFound."""
    wanted = find(record, digest).digest
    return replace(record, next=None if wanted == record.current else wanted)


def promoted(record: AdapterRecord, digest: str) -> AdapterRecord:
    """The plain name points to the version; it is a canary no longer, and what was to become current is forgotten.

    The current version may be promoted: it stays.  Raises NotFound.
    """
    wanted = find(record, digest).digest
    history = record.history if wanted == record.current else (*record.history, record.current)
    return _narrowed(record, record.versions, current=wanted, history=history, upcoming=None)


def rolled_back(record: AdapterRecord) -> AdapterRecord:
    """The plain name points to what it pointed to before.  Raises Conflict when there is nothing before."""
    if not record.history:
        raise Conflict(
            f"there is no version before {record.current[:_SHORT]} of {record.name}: promote one of "
            f"{_listed(record.versions)} instead"
        )
    return _narrowed(record, record.versions, current=record.history[-1], history=record.history[:-1], upcoming=None)


def canaried(record: AdapterRecord, digest: str, weight: float) -> AdapterRecord:
    """The version gets `weight` percent of the plain name's traffic; 0 ends it.

    The salt follows from the first canary, so that another canary is dealt to others, and the same one, begun again, to
    the same.  Raises NotFound, InvalidRequest when `weight` is no percentage, Conflict when it cannot be given away.
    """
    version = find(record, digest)
    if not 0 <= weight <= _WHOLE:  # NaN, too
        raise InvalidRequest(f"weight must be a percentage from 0 to 100, not {str(weight)[:40]}", param="weight")
    if version.digest == record.current:
        raise Conflict(f"{version.version} is the current version of {record.name}: it gets what its canaries leave")
    canary = CanaryRecord(version.digest, float(weight))
    weights = {c.digest: c for c in record.canaries} | {canary.digest: canary}
    canaries = tuple(c for c in weights.values() if c.weight > 0)
    if (total := _total(canaries)) > _WHOLE:
        raise Conflict(
            f"the canaries of {record.name} would get {total:g} % of its traffic: {_shares(record.canaries)} already"
        )
    salt = (record.salt or f"{record.name}@{version.version}") if canaries else ""
    return replace(record, canaries=canaries, salt=salt)


def removed(record: AdapterRecord, digest: str) -> AdapterRecord | None:
    """Without the version; None: it was the last one.

    When it was current, the plain name points to what it pointed to before, or else to the newest version that is left.
    Raises NotFound.
    """
    gone = find(record, digest).digest
    versions = tuple(version for version in record.versions if version.digest != gone)
    if not versions:
        return None
    current = record.current
    if gone == current:
        current = record.history[-1] if record.history else versions[-1].digest
    return _narrowed(record, versions, current=current, history=record.history, upcoming=record.next)


def configured(record: AdapterRecord, **settings: Unpack[Settings]) -> AdapterRecord:
    """With these settings; what is not named stays.  Raises InvalidRequest when it could be nowhere."""
    if (upstreams := settings.get("upstreams")) is not None:
        if not upstreams:
            raise InvalidRequest(
                "upstreams must name at least one upstream; null is every one that it fits", param="upstreams"
            )
        settings["upstreams"] = tuple(dict.fromkeys(upstreams))
    return replace(record, **settings)


def _narrowed(
    record: AdapterRecord,
    versions: tuple[VersionRecord, ...],
    *,
    current: str,
    history: Sequence[str],
    upcoming: str | None,
) -> AdapterRecord:
    """The record with these versions and this current one, and without whatever contradicts them."""
    others = {version.digest for version in versions} - {current}
    canaries = tuple(canary for canary in record.canaries if canary.digest in others)
    return replace(
        record,
        versions=versions,
        current=current,
        history=tuple(digest for digest in history if digest in others),
        canaries=canaries,
        salt=record.salt if canaries else "",
        next=upcoming if upcoming in others else None,
    )


def _again(known: VersionRecord, version: VersionRecord) -> VersionRecord:
    by_hand = version.watched and not known.watched
    source = known.source if by_hand else version.source
    return replace(version, added=known.added, watched=version.watched and known.watched, source=source)


def _some_of(digests: Sequence[str], of: set[str]) -> bool:
    return len(set(digests)) == len(digests) and of.issuperset(digests)


def _total(canaries: Sequence[CanaryRecord]) -> float:
    """In percent, to a millionth: a sum of decimal fractions is not off by the last bit."""
    return round(math.fsum(canary.weight for canary in canaries), 6)


def _shares(canaries: Sequence[CanaryRecord]) -> str:
    return ", ".join(f"{canary.digest[:_SHORT]} gets {canary.weight:g} %" for canary in canaries)


def _listed(versions: Sequence[VersionRecord]) -> str:
    """The newest ones, in short."""
    shown = [version.version for version in versions[-_SHOWN:]]
    return ", ".join(["…", *shown] if len(versions) > _SHOWN else shown)
