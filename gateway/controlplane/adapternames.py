"""The names of all adapters: thousands, of which one changes at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gateway.controlplane.naming import Adapter, Names, Version
from gateway.controlplane.observed import AdapterStatus
from gateway.controlplane.offering import Offering


@dataclass(frozen=True, slots=True, eq=False)
class Roll:
    """All adapters by their plain names, in order, and the names that clients can ask for because of them."""

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    plain: Names = field(default_factory=Names)
    exact: Names = field(default_factory=Names)


class AdapterNames:
    """Follows the adapters from moment to moment.  What comes out depends on the last moment alone, and is the very
    same object for as long as it would be equal."""

    def __init__(self) -> None:
        self._statuses: tuple[AdapterStatus, ...] = ()
        self._versions: dict[str, tuple[AdapterStatus, ...]] = {}
        self._offerings: tuple[Offering, ...] = ()
        self._salts: Mapping[str, str] = {}
        self._roll = Roll()
        # The adapters that `_roll` is not up to date with; None: maybe all of them.
        self._stale: set[str] | None = set()
        #: Every adapter by its name in an engine.
        self.known: frozenset[str] = frozenset()

    def observe(self, statuses: tuple[AdapterStatus, ...]) -> None:
        """Takes the statuses of a new moment."""
        changed = _changed(self._statuses, statuses)
        if changed is None:
            self._versions = _by_name(statuses)
            self.known = frozenset(each.engine_name for each in statuses if each.version)
            self._stale = None
        elif changed:
            self._versions |= _by_name(each for each in statuses if each.name in changed)
            if self._stale is not None:
                self._stale |= changed
        self._statuses = statuses

    def roll(self, offerings: tuple[Offering, ...], salts: Mapping[str, str]) -> Roll:
        """The names at the moment that was observed last, by what the upstreams offer then."""
        if offerings != self._offerings or salts != self._salts:
            self._offerings, self._salts, self._stale = offerings, dict(salts), None
        if self._stale is None:
            self._replace(self._made(self._versions))
        elif self._stale:
            self._replace({**self._roll.adapters, **self._made(self._stale)})
        self._stale = set()
        return self._roll

    def _made(self, names: Iterable[str]) -> dict[str, Adapter]:
        fitting: dict[tuple[str, ...], tuple[Offering, ...]] = {}
        made = {}
        for name in names:
            before = self._roll.adapters.get(name)
            versions = {}
            for status in self._versions[name]:
                if (there := fitting.get(status.places)) is None:
                    there = tuple(each for each in self._offerings if each.upstream.name in status.places)
                    fitting[status.places] = there
                adapter = status.engine_name
                versions[adapter] = Version.of(status, there, before.versions.get(adapter) if before else None)
            made[name] = Adapter.of(name, versions, self._salts.get(name, ""), before)
        return made

    def _replace(self, adapters: dict[str, Adapter]) -> None:
        before = self._roll
        changed = {name: each for name, each in adapters.items() if each is not before.adapters.get(name)}
        if list(adapters) != list(before.adapters) or not all(
            each.named_like(before.adapters[name]) for name, each in changed.items()
        ):
            self._roll = Roll(adapters, _plain(adapters), _exact(adapters))
        elif changed:
            self._roll = Roll(adapters, before.plain.over(_plain(changed)), before.exact.over(_exact(changed)))


def _plain(adapters: Mapping[str, Adapter]) -> Names:
    return Names.of((name, each.plain) for name, each in adapters.items() if each.plain is not None)


def _exact(adapters: Mapping[str, Adapter]) -> Names:
    return Names.of(item for each in adapters.values() for item in each.exact.items())


def _changed(before: tuple[AdapterStatus, ...], now: tuple[AdapterStatus, ...]) -> set[str] | None:
    """The names of the adapters of whose versions something else is said; None: versions have come, gone or moved."""
    if len(before) != len(now):
        return None
    changed = set()
    for old, new in zip(before, now, strict=True):
        if old is not new and old != new:
            if old.engine_name != new.engine_name:
                return None
            if new.version:  # else it has no names yet
                changed.add(new.name)
    return changed


def _by_name(statuses: Iterable[AdapterStatus]) -> dict[str, tuple[AdapterStatus, ...]]:
    found: dict[str, list[AdapterStatus]] = {}
    for status in statuses:
        if status.version:
            found.setdefault(status.name, []).append(status)
    return {name: tuple(versions) for name, versions in found.items()}
