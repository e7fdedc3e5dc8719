"""Where every version of every adapter is in its life, told anew only where something has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain

from gateway.controlplane.desired import AdapterRecord
from gateway.controlplane.folders import Arrival
from gateway.controlplane.observed import AdapterStatus
from gateway.controlplane.registry import Registry
from gateway.controlplane.versions import Host, Standing, leaving, statuses

#: What engines and requests have to do with the adapters of one name at one moment.
_Facts = list[tuple[str, str, object]]


class Lives:
    """Keeps what it said: of a thousand adapters few change at a time, and what did not change is the same object, the
    whole of it, too."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[AdapterStatus, ...]] = {}  # by name, in order
        self._left: list[str] = []
        self._all: tuple[AdapterStatus, ...] = ()
        # What it was told from.
        self._scene: tuple[object, ...] = ()
        self._records: Mapping[str, AdapterRecord] = {}
        self._arrivals: Mapping[str, Arrival] = {}
        self._facts: Mapping[str, _Facts] = {}

    def look(
        self,
        registry: Registry,
        standings: Mapping[str, Standing],
        arrivals: Mapping[str, Arrival],
        taken: Collection[str],
        waiting: Collection[str],
    ) -> tuple[AdapterStatus, ...]:
        """Every version, by name; then what engines still hold and nobody wants.  `arrivals`: what folders have that is
        no version yet; `taken`: names of other models; `waiting`: adapters that requests wait for."""
        asked = {name: (_asks(standing.host), standing.may_tell) for name, standing in standings.items()}
        scene = (asked, registry.unfit, taken)
        if scene != self._scene:
            self._scene, self._told, self._records, self._arrivals, self._facts = scene, {}, {}, {}, {}
        records, facts = registry.records, _facts(standings, waiting)
        stale = _others(self._records, records) | _others(self._arrivals, arrivals) | _others(self._facts, facts)
        self._records, self._arrivals, self._facts = records, dict(arrivals), facts
        told = {**self._told, **dict.fromkeys(stale, ())}
        for name in stale:
            if (record := records.get(name)) is not None:
                told[name] = statuses(record, standings, registry.unfit, name in taken, waiting)
            if (arrival := arrivals.get(name)) is not None:
                told[name] += (AdapterStatus(name, arrival.phase, reason=arrival.reason),)
        if told.keys() != self._told.keys() or not all(map(told.get, stale)):
            told = {name: told[name] for name in sorted(told) if told[name]}
        held = {adapter for standing in standings.values() for adapter in standing.listed}
        left = sorted(held - registry.index.by_adapter.keys())
        if stale or left != self._left:
            self._all = (*chain.from_iterable(told.values()), *map(leaving, left))
        self._told, self._left = told, left
        return self._all


def _asks(host: Host | None) -> Host | None:
    """What the engine asks of adapters, whatever room it has for them."""
    return None if host is None else replace(host, room=0)


def _others(before: Mapping[str, object], now: Mapping[str, object]) -> set[str]:
    """The names of which something else is there."""
    if before is now:
        return set()
    names = before.keys() | now.keys()
    return {name for name in names if (new := now.get(name)) is not (old := before.get(name)) and new != old}


def _facts(standings: Mapping[str, Standing], waiting: Collection[str]) -> Mapping[str, _Facts]:
    """Of the names that engines or requests have to do with; whether an engine is up matters to no other."""
    facts: dict[str, _Facts] = defaultdict(list)
    for upstream, standing in standings.items():
        for what, adapters in (
            ("listed", standing.listed),
            ("proven", standing.proven),
            ("resident", standing.residents.keys()),
        ):
            for adapter in sorted(adapters):
                facts[adapter.partition("@")[0]].append((upstream, what, adapter))
        for adapter, trouble in standing.troubles.items():
            facts[adapter.partition("@")[0]].append((upstream, adapter, trouble))
    for adapter in sorted(waiting):
        facts[adapter.partition("@")[0]].append(("", "waiting", adapter))
    states = tuple((upstream, standing.state) for upstream, standing in standings.items())
    for known in facts.values():
        known.append(("", "states", states))
    return facts
