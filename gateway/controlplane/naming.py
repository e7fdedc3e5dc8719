"""The places that answer for a name → its route, and its card where it is listed.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from gateway.controlplane.cards import Presence, card, described, shared
from gateway.controlplane.config import Description, ModelSettings
from gateway.controlplane.observed import AdapterStatus, Phase
from gateway.controlplane.offering import Offering, Place, metered_as, price_of
from gateway.domain.snapshot import Readiness, Route, Split, Target, Variant


@dataclass(frozen=True, slots=True)
class Named:
    """What a public name is.  `card` None: it is not listed."""

    route: Route
    card: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """Public names: their routes, and the cards of those that are listed, in the order of the list."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    cards: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, named: Iterable[tuple[str, Named]]) -> Names:
        routes: dict[str, Route] = {}
        cards: dict[str, bytes] = {}
        for name, each in named:
            routes[name] = each.route
            if each.card is not None:
                cards[name] = each.card
        return cls(routes, cards)

    def over(self, changed: Names) -> Names:
        """These, and of those that have changed what they are now; none of them is new, nor is it listed or not."""
        return Names({**self.routes, **changed.routes}, {**self.cards, **changed.cards})


def merged(groups: Iterable[Names]) -> tuple[dict[str, Route], dict[str, bytes]]:
    """All of these names.  One that several groups claim is the first one's, listed or not."""
    routes: dict[str, Route] = {}
    cards: dict[str, bytes] = {}
    for group in groups:
        taken = routes.keys() & group.routes.keys()
        routes |= {name: each for name, each in group.routes.items() if name not in taken} if taken else group.routes
        cards |= {name: each for name, each in group.cards.items() if name not in taken} if taken else group.cards
    return routes, cards


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A version of an adapter: its place at each of the upstreams that it fits, in order."""

    status: AdapterStatus
    places: Mapping[Offering, Place]

    @classmethod
    def of(cls, status: AdapterStatus, fitting: tuple[Offering, ...], before: Version | None = None) -> Version:
        """What has not changed since `before` is taken from it, to the whole of it."""
        kept: Mapping[Offering, Place] = {}
        if before is not None and (before.status is status or before.status == status):
            kept = before.places
            if tuple(kept) == fitting:
                return before
        return cls(status, {offering: kept.get(offering) or offering.adapter(status) for offering in fitting})


@dataclass(frozen=True, slots=True)
class Canary:
    """A version beside the current one, and the share of the callers that it ends at (see `Variant.below`)."""

    below: float
    version: Version


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """All names of one adapter, and what they were made of: its `versions` by `name@version`, and the `salt` that deals
    out its callers.

    `plain`: its plain name, if that points to a version (`current`).  `exact`: of the versions that are routed.
    """

    versions: Mapping[str, Version]
    salt: str
    plain: Named | None
    exact: Mapping[str, Named]
    current: Version | None
    canaries: tuple[Canary, ...]

    @classmethod
    def of(cls, name: str, versions: Mapping[str, Version], salt: str, before: Adapter | None = None) -> Adapter:
        """The names of the adapter `name`; `before` itself where that was made of the same."""
        if before is not None and before.salt == salt and list(before.versions.items()) == list(versions.items()):
            return before
        exact: dict[str, Named] = {}
        canaries: list[Canary] = []
        current: Version | None = None
        percent = 0.0
        for engine_name, version in versions.items():
            status = version.status
            if status.routed:
                exact[engine_name] = Named(Route(engine_name, _targets(version.places.values())))
            if status.current:
                current = version
            elif status.canary:
                percent += status.canary
                canaries.append(Canary(percent / 100, version))
        plain = None if current is None else _plain(name, current, canaries, salt)
        return cls(versions, salt, plain, exact, current, tuple(canaries))

    def named_like(self, other: Adapter) -> bool:
        """Whether both have the same names in the same order, listed or not."""
        mine, others = (
            (each.plain is None, each.plain is not None and each.plain.card is None, list(each.exact))
            for each in (self, other)
        )
        return mine == others


def _plain(name: str, current: Version, canaries: Sequence[Canary], salt: str) -> Named:
    split = None
    if canaries:
        split = Split(salt, tuple(Variant(each.below, _targets(each.version.places.values())) for each in canaries))
    everywhere = [
        place for each in (current, *(canary.version for canary in canaries)) for place in each.places.values()
    ]
    route = Route(name, _targets(current.places.values()), split)
    return Named(route, _card(name, everywhere, presence=_presence(current)))


def _presence(version: Version) -> Presence:
    states = {place.target.readiness for place in version.places.values()}
    if Readiness.READY in states:
        return Presence.LOADED
    awaited = Readiness.LOADING in states and version.status.phase not in (Phase.DRAINING, Phase.UNLOADED)
    return Presence.LOADING if awaited else Presence.UNLOADED


def of_upstreams(name: str, places: Sequence[Place]) -> Named:
    """A name that upstreams give, each in one place."""
    return Named(Route(name, _targets(places)), _card(name, places))


class Wanted(NamedTuple):
    """A place that a name of the file wants at an upstream, and the adapter whose plain name it is."""

    offering: Offering
    place: Place
    adapter: Adapter | None


def of_file(model: ModelSettings, wanted: Sequence[Wanted]) -> Named:
    """A name of the file, whose own settings count for each of its places.  Where one is an adapter with canaries, so
    has this name; of two such adapters the first one's count, because a caller has one share."""
    places = [_own(each.place, model) for each in wanted]
    dealt = next((each.adapter for each in wanted if each.adapter is not None and each.adapter.canaries), None)
    split = None
    if dealt is not None:
        variants = (Variant(each.below, _instead(each, dealt, model, wanted)) for each in dealt.canaries)
        split = Split(dealt.salt, tuple(variants))
    return Named(Route(model.id, _targets(places), split), _card(model.id, places, model))


def _instead(canary: Canary, dealt: Adapter, model: ModelSettings, wanted: Sequence[Wanted]) -> tuple[Target, ...]:
    """The targets of a name of the file for callers of the canary: it stands where the current version does, if it
    fits there.  While it can be had nowhere, they go where all others go."""
    places: list[Place] = []
    possible = False
    for each in wanted:
        place = each.place if each.adapter is not dealt else canary.version.places.get(each.offering)
        if place is not None:
            places.append(place)
            possible |= each.adapter is dealt and place.target.readiness is not Readiness.DOWN
    return _targets(_own(place, model) for place in (places if possible else [each.place for each in wanted]))


def _own(place: Place, model: ModelSettings) -> Place:
    target = replace(
        place.target,
        context_length=model.context_length or place.target.context_length,
        price=price_of(model) or place.target.price,
        metered=metered_as(model.id, model) or place.target.metered,
        strip_tools=place.target.strip_tools if model.tools is None else not model.tools,
    )
    return replace(place, target=target, facts=replace(place.facts, name=None, description=None, parent=None))


def _card(
    name: str, places: Iterable[Place], by: Description | None = None, presence: Presence = Presence.AVAILABLE
) -> bytes | None:
    """What the list says of a name; None for one that it leaves out."""
    shown = [place.facts for place in places if place.listed]
    return card(name, described(shared(shown), by), presence) if shown else None


def _targets(places: Iterable[Place]) -> tuple[Target, ...]:
    return tuple([place.target for place in places])
