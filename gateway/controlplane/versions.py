"""The versions of adapters: where each may go, what engines are asked to hold, where each is in its life.

Pure rules over the desired state (`desired`) and what is seen of the engines (`Standing`).  A version's name in the
engine says its content, so nothing here is ever changed in place: only what the plain name points to moves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.controlplane.desired import AdapterRecord, VersionRecord
from gateway.controlplane.observed import AdapterStatus, Phase, UpstreamState
from gateway.controlplane.residency import Wish

#: (digest, fingerprint of a base model) → why the version does not fit it.
Unfit = Mapping[tuple[str, str], str]
_NOTHING_KNOWN: Unfit = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Host:
    """What an engine asks of an adapter.  `model`: its base model, as a folder or a name on the Hugging Face hub;
    `fingerprint`: of that model's shapes, "" when it is not on this machine, None while it was not looked at;
    `max_lora_rank` None: not known; `room`: adapters that it keeps in memory, 0 when that is not known."""

    model: str
    max_lora_rank: int | None = None
    fingerprint: str | None = None
    room: int = 0


@dataclass(frozen=True, slots=True)
class LoadTrouble:
    """Why an engine does not hold a version.  `lasting`: asking again soon changes nothing."""

    message: str
    lasting: bool


@dataclass(frozen=True, slots=True)
class Indexed:
    """A version, the adapter that it belongs to, and its folder in the store."""

    record: AdapterRecord
    version: VersionRecord
    path: str


@dataclass(frozen=True, slots=True)
class Standing:
    """One engine at one moment, adapters by their names in it.

    `listed`: those of ours that it lists; `proven`: those of them that answered a probe; `residents`: those that it is
    to hold, in the order of loading; `troubles`: why one of them is not there.
    """

    state: UpstreamState
    host: Host | None = None
    listed: frozenset[str] = frozenset()
    proven: frozenset[str] = frozenset()
    residents: Mapping[str, Indexed] = field(default_factory=lambda: MappingProxyType({}))
    troubles: Mapping[str, LoadTrouble] = field(default_factory=lambda: MappingProxyType({}))

    def serves(self, adapter: str) -> bool:
        """Whether a request for it may be sent here now."""
        return self.state is UpstreamState.UP and adapter in self.proven and adapter in self.residents

    @property
    def may_tell(self) -> bool:
        """Whether it is known, or will turn out, what fits it: who runs and has no host takes no adapters."""
        return self.host is not None or self.state is not UpstreamState.UP


def engine_name(record: AdapterRecord, version: VersionRecord) -> str:
    """The version's name in an engine, and its exact public name."""
    return f"{record.name}@{version.version}"


def misfit(record: AdapterRecord, version: VersionRecord, upstream: str, host: Host | None, unfit: Unfit) -> str | None:
    """Why the version may not go to this engine; "" when that is not known yet, None when it may."""
    if record.upstreams is not None and upstream not in record.upstreams:
        return f"it is not meant for {upstream}"
    if host is None or host.fingerprint is None:
        return ""
    if host.max_lora_rank is not None and version.rank > host.max_lora_rank:
        return (
            f"rank {version.rank} > {host.max_lora_rank}: start the engine with --max-lora-rank {version.rank} "
            "or more (engine.max_lora_rank), or merge"
        )
    if host.fingerprint in version.fits:
        return None
    return unfit.get((version.digest, host.fingerprint), "")


def kept(record: AdapterRecord) -> tuple[VersionRecord, ...]:
    """The versions that are loaded without being asked for, the most needed first: what serves, what is to serve, and
    the one before, so that going back is immediate."""
    by_digest = {version.digest: version for version in record.versions}
    previous = record.history[-1:]
    order = (record.current, record.next, *(canary.digest for canary in record.canaries), *previous)
    newest = record.versions[-1].digest
    return tuple(by_digest[digest] for digest in dict.fromkeys((*order, newest)) if digest is not None)


def is_eager(record: AdapterRecord, default: str) -> bool:
    """Whether its versions are loaded without being asked for."""
    return (record.load or default) == "eager"


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for, all on the monotonic clock, on which `now` is the moment that is looked at.

    `asked`: when a request last named an adapter (-inf: never); `recently`: those named not long ago, the last one
    first.  `waiting`: since when somebody waits for one.  `users`: requests that one has on an upstream.  `ejected`:
    those that go, and are loaded again when somebody waits for them.  `taken`: names of adapters that other models
    have.  `grace`: seconds that a version stays which is not kept.
    """

    now: float
    grace: float
    asked: Callable[[str], float]
    recently: Sequence[str]
    waiting: Mapping[str, float]
    users: Callable[[str, str], int]
    ejected: Collection[str]
    taken: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """What an engine has of ours: what it lists, since when, what of it has answered a probe, and why something is not
    there that should be."""

    since: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    proven: frozenset[str] = frozenset()
    troubles: Mapping[str, LoadTrouble] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class _Entry:
    """What follows from one record.  Of its versions, by their names in the engine: all of them, the current one, those
    that are kept (`kept`), and of these the ones that are loaded without being asked for."""

    record: AdapterRecord
    versions: Mapping[str, Indexed]
    current: str
    kept: tuple[str, ...]
    eager: tuple[str, ...]

    @classmethod
    def of(cls, record: AdapterRecord, path: Callable[[str], str], default: str) -> _Entry:
        names = {version.digest: engine_name(record, version) for version in record.versions}
        needed = tuple(names[version.digest] for version in kept(record))
        upcoming = () if record.next is None else (names[record.next],)
        return cls(
            record,
            {names[version.digest]: Indexed(record, version, path(version.digest)) for version in record.versions},
            names[record.current],
            needed,
            needed if is_eager(record, default) else upcoming,
        )


class Index:
    """The desired state, arranged for looking things up; made anew when it changes.

    `path` gives a version's folder by its digest, `default` whether an adapter without a setting of its own is loaded
    without being asked for.  What was worked out `before` of records that are the same is not worked out again.
    """

    def __init__(
        self,
        records: Mapping[str, AdapterRecord],
        path: Callable[[str], str],
        default: str,
        before: Index | None = None,
    ) -> None:
        known: Mapping[str, _Entry] = {} if before is None else before._entries
        self.records = records
        self._entries: Mapping[str, _Entry] = {
            name: entry
            if (entry := known.get(name)) is not None and entry.record is record
            else _Entry.of(record, path, default)
            for name, record in records.items()
        }
        entries = self._entries.values()
        self.by_adapter = {adapter: indexed for entry in entries for adapter, indexed in entry.versions.items()}
        self.pinned = frozenset([entry.current for entry in entries if entry.record.pinned])
        #: What serves, comes, or was before: all others leave soon after their last request.
        self.kept = frozenset([adapter for entry in entries for adapter in entry.kept])
        #: What is loaded without being asked for, in order: what serves comes before what may.
        self.eager = tuple(
            dict.fromkeys(
                [
                    *(entry.current for entry in entries if entry.current in entry.eager),
                    *(adapter for entry in entries for adapter in entry.eager),
                ]
            )
        )
        self._eager = frozenset(self.eager)
        #: Names whose traffic is split → the salt of that.
        self.salts = {name: record.salt for name, record in records.items() if record.salt}
        #: Adapters that are to move to another version when it is ready.
        self.moving = tuple([record for record in records.values() if record.next is not None])

    def wishes(self, upstream: str, host: Host, holding: Holding, demand: Demand) -> list[Wish]:
        """Everything that this engine could be asked to hold now; what nobody asks for and nothing pins is left out, so
        that a thousand idle adapters cost nothing."""
        found: dict[str, Wish] = {}
        eager = 0
        for adapter in self.eager:
            if host.room and eager >= host.room:
                break
            wish = self._wish(adapter, upstream, host, holding, demand)
            if wish is not None and wish.eager:
                found[adapter] = wish
                eager += 1
        for adapter in (*holding.since, *self.pinned, *demand.waiting):
            if adapter not in found and (wish := self._wish(adapter, upstream, host, holding, demand)) is not None:
                found[adapter] = wish
        places = host.room or len(demand.recently)
        for adapter in demand.recently:
            if places <= 0:
                break  # whoever was asked for before these comes after them
            wish = found.get(adapter) or self._wish(adapter, upstream, host, holding, demand)
            if wish is not None:
                found[adapter] = wish
                places -= not wish.refused
        return list(found.values())

    def _wish(self, adapter: str, upstream: str, host: Host, holding: Holding, demand: Demand) -> Wish | None:
        indexed = self.by_adapter.get(adapter)
        if indexed is None or indexed.record.name in demand.taken:
            return None
        if misfit(indexed.record, indexed.version, upstream, host, _NOTHING_KNOWN) is not None:
            return None
        asked, waiting = demand.asked(adapter), demand.waiting.get(adapter)
        users = demand.users(upstream, adapter)
        forgotten = adapter not in self.kept and demand.now - asked >= demand.grace
        if (forgotten or adapter in demand.ejected) and waiting is None and not users:
            return None
        trouble = holding.troubles.get(adapter)
        return Wish(
            adapter=adapter,
            path=indexed.path,
            digest=indexed.version.digest,
            pinned=adapter in self.pinned,
            eager=adapter in self._eager,
            asked=asked,
            waiting=waiting,
            in_use=users,
            since=holding.since.get(adapter),
            refused=trouble is not None and trouble.lasting,
        )


def due(record: AdapterRecord, standings: Mapping[str, Standing]) -> str | None:
    """The digest that the plain name is to point to from now on, when `next` says so and nobody has to wait for it:
    when it serves wherever what it replaces does (an engine that fails to load it is not waited for)."""
    if record.next is None or record.next == record.current:
        return None
    versions = {version.digest: engine_name(record, version) for version in record.versions}
    old, new = versions[record.current], versions[record.next]
    return record.next if replaces(new, old, standings) else None


def replaces(new: str, old: str, standings: Mapping[str, Standing]) -> bool:
    """Whether the name may move between these two (names in the engine) without anybody waiting."""
    there = [name for name, standing in standings.items() if standing.serves(new)]
    missing = [
        name
        for name, standing in standings.items()
        if standing.serves(old) and name not in there and new not in standing.troubles
    ]
    return bool(there) and not missing


def statuses(
    record: AdapterRecord, standings: Mapping[str, Standing], unfit: Unfit, taken: bool, waiting: Collection[str]
) -> tuple[AdapterStatus, ...]:
    """Every version of an adapter, the oldest first.  `taken`: its name belongs to another model; `waiting`: adapters
    that requests wait for."""
    canaries = {canary.digest: canary.weight for canary in record.canaries}
    return tuple(
        _status(record, version, standings, unfit, taken, waiting, canaries.get(version.digest, 0.0))
        for version in record.versions
    )


def _status(
    record: AdapterRecord,
    version: VersionRecord,
    standings: Mapping[str, Standing],
    unfit: Unfit,
    taken: bool,
    waiting: Collection[str],
    canary: float,
) -> AdapterStatus:
    adapter = engine_name(record, version)
    reasons = {name: misfit(record, version, name, standing.host, unfit) for name, standing in standings.items()}
    where = tuple(name for name, reason in reasons.items() if reason is None)
    troubles = {name: standings[name].troubles[adapter] for name in where if adapter in standings[name].troubles}
    refused = {name: trouble.message for name, trouble in troubles.items() if trouble.lasting}
    phase, reason = _phase(adapter, where, standings, troubles, adapter in waiting)
    candidates: tuple[str, ...] = ()
    if not where:
        phase, reason = _nowhere(record, reasons)
        candidates = tuple(name for name, why in reasons.items() if why == "" and standings[name].may_tell)
    if taken:
        phase, reason = Phase.FAILED, f"the name {record.name} belongs to a model: choose another name for the adapter"
    return AdapterStatus(
        record.name,
        phase,
        version=version.version,
        digest=version.digest,
        base=version.base,
        reason=reason,
        upstreams=() if taken else where,
        refused=MappingProxyType(refused),
        candidates=() if taken else candidates,
        held=frozenset(() if taken else (name for name in where if standings[name].serves(adapter))),
        current=version.digest == record.current and not taken,
        canary=canary,
    )


def _phase(
    adapter: str,
    where: Collection[str],
    standings: Mapping[str, Standing],
    troubles: Mapping[str, LoadTrouble],
    waited_for: bool,
) -> tuple[Phase, str]:
    said = sentences({name: trouble.message for name, trouble in troubles.items()})
    here = [standings[name] for name in where]
    if any(standing.serves(adapter) for standing in here):
        return Phase.READY, said
    if troubles and len([t for t in troubles.values() if t.lasting]) == len(here):
        return Phase.FAILED, said
    if waited_for or any(adapter in standing.residents for standing in here):
        return Phase.LOADING, said or _away(where, standings)
    if any(adapter in standing.listed for standing in here):
        return Phase.DRAINING, "gives way to others when its last request has ended"
    return Phase.UNLOADED, "is loaded when it is asked for"


def _nowhere(record: AdapterRecord, reasons: Mapping[str, str | None]) -> tuple[Phase, str]:
    """A version that no engine may be given: why not."""
    meant = {name: reason for name, reason in reasons.items() if record.upstreams is None or name in record.upstreams}
    if not meant:
        return Phase.PENDING, "waits for an engine: none that takes adapters is configured"
    if not all(meant.values()):
        return Phase.PENDING, "waits for an engine: it is checked when the base model is known"
    if len(set(meant.values())) == 1:
        return Phase.FAILED, next(iter(meant.values())) or ""
    return Phase.FAILED, " | ".join(f"on {name}: {reason}" for name, reason in meant.items())


def leaving(adapter: str) -> AdapterStatus:
    """An adapter that an engine still holds and that the desired state has no more."""
    name, _, version = adapter.rpartition("@")
    return AdapterStatus(name, Phase.DRAINING, version=version, reason="unloaded when its last request has ended")


def _away(where: Collection[str], standings: Mapping[str, Standing]) -> str:
    away = [name for name in where if standings[name].state is not UpstreamState.UP]
    return f"waits for {', '.join(f'{name} ({standings[name].state})' for name in away)}" if away else ""


def sentences(by_upstream: Mapping[str, str]) -> str:
    """What is said of each upstream, as one text."""
    return "; ".join(f"{upstream}: {message}" for upstream, message in by_upstream.items())
