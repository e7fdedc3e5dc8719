"""Where every version of every adapter is in its life, told anew only where something has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gateway.controlplane.desired import AdapterRecord
from gateway.controlplane.folders import Arrival
from gateway.controlplane.observed import AdapterStatus
from gateway.controlplane.registry import Registry
from gateway.controlplane.versions import Standing, leaving, statuses

#: What an engine and the requests have to do with an adapter at one moment.
_Fact = tuple[str, str, object]


@dataclass(frozen=True, slots=True)
class _Told:
    """What was said of one name, and what it was said from."""

    record: AdapterRecord
    facts: tuple[_Fact, ...]
    statuses: tuple[AdapterStatus, ...]


class Lives:
    """Keeps what it said: of a thousand adapters few change at a time, and what did not change is the same object."""

    def __init__(self) -> None:
        self._scene: tuple[object, ...] = ()
        self._told: dict[str, _Told] = {}

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
        scene = ({name: (s.state, s.host) for name, s in standings.items()}, registry.unfit, taken)
        if scene != self._scene:
            self._scene, self._told = scene, {}
        facts = _facts(standings, waiting)
        told = {}
        found: list[AdapterStatus] = []
        for name in sorted({*registry.records, *arrivals}):
            if (record := registry.records.get(name)) is not None:
                known, seen = self._told.get(name), tuple(facts.get(name, ()))
                if known is None or known.record is not record or known.facts != seen:
                    known = _Told(record, seen, statuses(record, standings, registry.unfit, name in taken, waiting))
                told[name] = known
                found += known.statuses
            if (arrival := arrivals.get(name)) is not None:
                found.append(AdapterStatus(name, arrival.phase, reason=arrival.reason))
        self._told = told
        held = {adapter for standing in standings.values() for adapter in standing.listed}
        found += [leaving(adapter) for adapter in sorted(held - registry.index.by_adapter.keys())]
        return tuple(found)


def _facts(standings: Mapping[str, Standing], waiting: Collection[str]) -> Mapping[str, list[_Fact]]:
    facts: dict[str, list[_Fact]] = defaultdict(list)
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
    return facts
