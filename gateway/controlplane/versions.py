"""The versions of adapters: which one a name points to, which ones an engine is to hold, where each is in its life.

Pure rules.  A version's name in the engine says its content, so nothing here is ever changed in place: a new content
is a new version, and only what the plain name points to moves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from gateway.controlplane.observed import AdapterStatus, Phase, UpstreamState, UpstreamStatus


@dataclass(frozen=True, slots=True)
class Host:
    """What an engine asks of an adapter.  `model`: its base model, as a folder or a name on the Hugging Face hub;
    `max_lora_rank` None: not known."""

    model: str
    max_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """An adapter of one content, in the store.  `fits`: upstream → the host that it was found to fit there."""

    name: str
    digest: str
    path: str
    base: str
    rank: int
    fits: Mapping[str, Host]

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Where it may be loaded."""
        return tuple(self.fits)

    @property
    def version(self) -> str:
        """The first 12 hex digits of the digest."""
        return self.digest[:12]

    @property
    def engine_name(self) -> str:
        """Its name in an engine, and its exact public name."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one name: the last content that passed the checks (`offered`), and where the newest content
    stands when that is not it (`phase`: Pending, Validating or Failed)."""

    name: str
    offered: Version | None = None
    phase: Phase | None = None
    reason: str = ""


def held_against(version: Version, hosts: Mapping[str, Host]) -> Version:
    """The version where it still fits: an upstream whose engine now has another base model may be sent nothing that
    was not judged for it."""
    fits = {
        upstream: judged
        for upstream, judged in version.fits.items()
        if (host := hosts.get(upstream)) is not None
        and host.model == judged.model
        and (host.max_lora_rank is None or version.rank <= host.max_lora_rank)
    }
    return version if fits == version.fits else replace(version, fits=fits)


def all_held_against(known: Mapping[str, Known], hosts: Mapping[str, Host]) -> Mapping[str, Known]:
    """`held_against` for every version that is offered."""
    return {
        name: entry if entry.offered is None else replace(entry, offered=held_against(entry.offered, hosts))
        for name, entry in known.items()
    }


@dataclass(frozen=True, slots=True)
class LoadTrouble:
    """Why an engine does not hold a version.  `lasting`: asking again soon changes nothing."""

    message: str
    lasting: bool


#: Upstream → adapter (`name@version`) → why it is not there.
Troubles = Mapping[str, Mapping[str, LoadTrouble]]


def point(
    before: Mapping[str, Version],
    known: Mapping[str, Known],
    upstreams: Mapping[str, UpstreamStatus],
    troubles: Troubles,
) -> Mapping[str, Version]:
    """What each plain name points to now.

    The first version of a name at once, so that requests wait for it.  A later one when it is loaded wherever the one
    before it is (an engine that fails to load it is not waited for), so that nobody waits for a swap.
    """
    after: dict[str, Version] = {}
    for name, entry in known.items():
        if (newest := entry.offered) is None:
            continue
        old = before.get(name)
        if old is None or old.digest == newest.digest or _replaces(newest, old, upstreams, troubles):
            after[name] = newest
        else:
            after[name] = old
    return MappingProxyType(after)


def _replaces(new: Version, old: Version, upstreams: Mapping[str, UpstreamStatus], troubles: Troubles) -> bool:
    held = {name: upstreams[name].held for name in new.upstreams if name in upstreams}
    there = [name for name, adapters in held.items() if new.engine_name in adapters]
    missing = [
        name
        for name, adapters in held.items()
        if old.engine_name in adapters and name not in there and new.engine_name not in troubles.get(name, {})
    ]
    return bool(there) and not missing


def wanted(upstream: str, known: Mapping[str, Known], current: Mapping[str, Version]) -> Mapping[str, str]:
    """The adapters that an upstream's engine is to hold, by their names there, and their folders.  What serves now
    comes first."""
    offered = (entry.offered for entry in known.values())
    return {
        version.engine_name: version.path
        for version in (*current.values(), *offered)
        if version is not None and upstream in version.upstreams
    }


def statuses(
    known: Mapping[str, Known],
    current: Mapping[str, Version],
    upstreams: Mapping[str, UpstreamStatus],
    troubles: Troubles,
    *,
    leaving: Collection[str] = (),
    taken: Collection[str] = (),
) -> tuple[AdapterStatus, ...]:
    """Every version, by name.

    `leaving`: adapters that an engine still holds and that nobody wants any more.  `taken`: names that belong to other
    models.
    """
    return tuple(
        status
        for name in sorted(known)
        for status in _of_name(known[name], current.get(name), upstreams, troubles, taken)
    ) + tuple(_leaving(adapter) for adapter in sorted(leaving))


def _of_name(
    entry: Known,
    current: Version | None,
    upstreams: Mapping[str, UpstreamStatus],
    troubles: Troubles,
    taken: Collection[str],
) -> Iterator[AdapterStatus]:
    versions = {v.digest: v for v in (current, entry.offered) if v is not None}
    for version in versions.values():
        is_current = current is not None and version.digest == current.digest
        yield _of_version(version, is_current, entry.name in taken, upstreams, troubles)
    if entry.phase is not None:
        yield AdapterStatus(entry.name, entry.phase, reason=entry.reason)


def _of_version(
    version: Version, current: bool, taken: bool, upstreams: Mapping[str, UpstreamStatus], troubles: Troubles
) -> AdapterStatus:
    adapter = version.engine_name
    trouble = {name: troubles[name][adapter] for name in version.upstreams if adapter in troubles.get(name, {})}
    refused = {name: found.message for name, found in trouble.items() if found.lasting}
    phase, reason = Phase.LOADING, ""
    if taken:
        phase, reason = Phase.FAILED, f"the name {version.name} belongs to a model: rename the adapter's folder"
    elif any(adapter in upstreams[name].held for name in version.upstreams if name in upstreams):
        phase, reason = Phase.READY, _sentences({name: found.message for name, found in trouble.items()})
    elif version.upstreams and len(refused) == len(version.upstreams):
        phase, reason = Phase.FAILED, _sentences(refused)
    elif trouble:
        reason = _sentences({name: found.message for name, found in trouble.items()})
    else:
        reason = _waits_for(version, upstreams)
    return AdapterStatus(
        version.name,
        phase,
        version=version.version,
        digest=version.digest,
        path=version.path,
        base=version.base,
        reason=reason,
        upstreams=version.upstreams,
        refused=MappingProxyType(refused),
        held=frozenset(name for name in version.upstreams if name in upstreams and adapter in upstreams[name].held),
        current=current and not taken,
    )


def _leaving(adapter: str) -> AdapterStatus:
    name, _, version = adapter.rpartition("@")
    return AdapterStatus(name, Phase.DRAINING, version=version, reason="unloaded when its last request has ended")


def _waits_for(version: Version, upstreams: Mapping[str, UpstreamStatus]) -> str:
    if not version.upstreams:
        return "is checked again: the base models are others now"
    away = [n for n in version.upstreams if n in upstreams and upstreams[n].state is not UpstreamState.UP]
    return f"waits for {', '.join(f'{name} ({upstreams[name].state})' for name in away)}" if away else ""


def _sentences(by_upstream: Mapping[str, str]) -> str:
    return "; ".join(f"{upstream}: {message}" for upstream, message in by_upstream.items())
