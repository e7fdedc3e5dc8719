"""Configuration and what is observed → the snapshot that the data plane serves from.  Pure.

Which name is answered where:

- `models:` of the file are names of their own;
- every model of an upstream is offered under `prefix + its name`; upstreams that offer the same name are targets of
  it, in file order;
- an adapter that the gateway loads is offered under its plain name, which points to its current version (and for some
  callers to a canary), and under `name@version`, which is not listed.

A name belongs to the first of these that claims it, in this order.  A name stays routed while its upstream is down, so
that a request hears "not now" and never "no such model".

There may be thousands of adapters, of which one changes at a time.  So what is made of an upstream, of an adapter and
of a name is kept until what it was made of is another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from urllib.parse import urlencode

from gateway.controlplane import naming, values
from gateway.controlplane.adapternames import AdapterNames, Roll
from gateway.controlplane.config import Config, UpstreamSettings
from gateway.controlplane.memo import Memo
from gateway.controlplane.naming import Named, Names, Wanted
from gateway.controlplane.observed import EngineEndpoint, Observed, UpstreamState, UpstreamStatus
from gateway.controlplane.offering import Offering, Place, Scene, offered
from gateway.controlplane.pricelist import price_list
from gateway.domain import snapshot
from gateway.domain.keys import NO_KEYS, KeyTable
from gateway.domain.limits import Allowances
from gateway.domain.listing import ListedModel
from gateway.domain.people import People, Sharing, Team
from gateway.domain.secret import Secret
from gateway.domain.snapshot import Snapshot, Upstream

_LOOPBACK = "127.0.0.1"
_UNSEEN = UpstreamStatus(UpstreamState.STARTING, since=0.0)


def compile(config: Config, observed: Observed, version: int) -> Snapshot:
    """The snapshot of one moment."""
    return Compiler(config, version - 1).compile(observed)


class Compiler:
    """Compiles one configuration, moment after moment.

    What comes out depends on the moment alone, but for the snapshot's version, which counts the changes from `version`
    on.  The moments before only make it cheap.
    """

    def __init__(self, config: Config, version: int = 0) -> None:
        self._config = config
        self._upstreams = {upstream.name: upstream for upstream in config.upstreams}
        self._prices = {
            upstream.name: price_list(upstream.prices, upstream.base_url or "")
            for upstream in config.upstreams
            if upstream.prices is not None
        }
        self._own_models = {model.id: model for model in config.models}
        self._people = people_of(config)
        self._allowances = allowances_of(config)
        self._task_models = MappingProxyType(dict(config.openwebui.tasks))
        self._adapters = AdapterNames()
        self._records = Memo(self._record)
        self._lists = Memo(_without)
        self._offerings = Memo(self._offering)
        self._own = Memo(self._own_name)
        self._given = Memo(_given)
        self._own_names = Memo(_in_order)
        self._groups: tuple[Names, ...] = ()
        self._keys = NO_KEYS
        self._version = version
        self._last: Snapshot | None = None

    def compile(self, observed: Observed) -> Snapshot:
        """The snapshot of this moment: the very object of the moment before while nothing that is served or listed
        has changed, else one of the next version."""
        for memo in (self._records, self._lists, self._offerings, self._own, self._own_names, self._given):
            memo.begin()
        statuses = {name: observed.upstreams.get(name, _UNSEEN) for name in self._upstreams}
        upstreams = {name: self._records.get(name, (each.endpoint, each.max_loras)) for name, each in statuses.items()}
        groups, last = self._names(observed, statuses), self._last
        rekeyed = observed.keys is not self._keys
        if last is not None and groups == self._groups and last.upstreams == upstreams:
            return self._rekeyed(last, observed.keys) if rekeyed else last
        self._groups = groups
        routes, cards = naming.merged(groups)
        if (
            last is None
            or rekeyed
            or last.routes != routes
            or last.cards != cards
            or list(last.cards) != list(cards)  # the order of the list
            or last.upstreams != upstreams
        ):
            self._version += 1
            self._keys = observed.keys
            self._last = last = Snapshot(
                self._version,
                routes=MappingProxyType(routes),
                upstreams=MappingProxyType(upstreams),
                cards=MappingProxyType(cards),
                keys=observed.keys.principals,
                auth_required=self._config.auth.required,
                admin_key=observed.keys.admin,
                pepper=observed.keys.pepper,
                keys_partial=observed.keys.partial,
                task_models=self._task_models,
                people=self._people,
                allowances=self._allowances,
            )
        return last

    def _rekeyed(self, last: Snapshot, keys: KeyTable) -> Snapshot:
        """The same with other keys: of what else there may be nothing is looked at."""
        self._version += 1
        self._keys = keys
        self._last = replace(
            last,
            version=self._version,
            keys=keys.principals,
            admin_key=keys.admin,
            pepper=keys.pepper,
            keys_partial=keys.partial,
        )
        return self._last

    def _names(self, observed: Observed, statuses: Mapping[str, UpstreamStatus]) -> tuple[Names, ...]:
        """All public names, in the order of the list.  The first to claim a name has it."""
        self._adapters.observe(observed.adapters)
        offerings = {}
        for name, status in statuses.items():
            # The gateway's own adapters are left out: with each that comes or goes only its own names change.
            listed = self._lists.get(name, (status.models, self._adapters.known))
            left = _leaves_at(self._upstreams[name], status) <= observed.now
            scene = Scene(status.state, status.progress, listed, left, observed.started)
            offerings[name] = self._offerings.get(name, scene)
        in_order = tuple(offerings.values())
        roll = self._adapters.roll(in_order, observed.salts)
        own = []
        for model in self._config.models:
            wanted = tuple(_wanted(offerings[target.upstream], target.model, roll) for target in model.targets)
            own.append((model.id, self._own.get(model.id, wanted)))
        models, foreign = self._given.get(None, in_order)
        return self._own_names.get(None, tuple(own)), models, roll.plain, roll.exact, foreign

    def _record(self, name: str, of_process: tuple[EngineEndpoint | None, int]) -> Upstream:
        return upstream_record(self._config, self._upstreams[name], *of_process)

    def _offering(self, name: str, scene: Scene) -> Offering:
        return Offering(self._upstreams[name], scene, self._prices.get(name))

    def _own_name(self, name: str, wanted: tuple[Wanted, ...]) -> Named:
        return naming.of_file(self._own_models[name], wanted)


def allowances_of(config: Config) -> Allowances:
    """What the file lets each scope use."""
    limits = config.limits
    return Allowances(
        key=limits.defaults.key.of_domain(),
        user=limits.defaults.user.of_domain(),
        teams=MappingProxyType({team.name: team.of_domain() for team in config.teams}),
        users=MappingProxyType({user: scope.of_domain() for user, scope in limits.users.items()}),
    )


def model_names(config: Config, observed: Observed) -> frozenset[str]:
    """The public names that no adapter can have: those of the file and of models that are no adapters."""
    names = {model.id for model in config.models}
    for upstream in config.upstreams:
        status = observed.upstreams.get(upstream.name, _UNSEEN)
        models = offered(upstream, status.state, status.models)
        names.update(upstream.prefix + model.id for model in models if model.parent is None)
    return frozenset(names)


def people_of(config: Config) -> People:
    """What the file says of users and teams."""
    users = config.users
    return People(
        jwt_secret=users.openwebui.jwt_secret,
        issuer=users.openwebui.issuer,
        trusted_headers=users.trusted_headers,
        rights=MappingProxyType({role: frozenset(rights) for role, rights in users.roles.items()}),
        role_models=MappingProxyType(dict(users.models)),
        teams=MappingProxyType({t.name: Team(t.name, t.members, t.groups, t.models) for t in config.teams}),
        cache=Sharing(users.cache),
        cache_secret=users.cache_secret,
    )


def next_change(config: Config, observed: Observed) -> float | None:
    """When `compile` will give something else although nothing happens: the next moment at which models of an upstream
    that is down leave the list."""
    moments = (
        _leaves_at(upstream, status)
        for upstream in config.upstreams
        if (status := observed.upstreams.get(upstream.name)) is not None
    )
    return min((moment for moment in moments if observed.now < moment < math.inf), default=None)


def upstream_record(
    config: Config, upstream: UpstreamSettings, endpoint: EngineEndpoint | None = None, max_loras: int = 0
) -> Upstream:
    """What backend and transport need to speak to it.

    An engine of the gateway's own has the rest from its process: an `endpoint`, without which it does not listen yet
    and has port 0, and `max_loras`, with which it was started.  For any other, that counts where the file does not say.
    """
    headers = dict(upstream.headers)
    if upstream.engine is not None:
        host, port = (endpoint.host, endpoint.port) if endpoint is not None else (_LOOPBACK, 0)
        address = values.Address("http", host, port, "/v1")
        key = endpoint.key if endpoint is not None else None
    else:
        address = values.address(upstream.base_url or "")
        key = upstream.api_key
        max_loras = upstream.adapters.max_loras or max_loras
    if key is not None:
        headers.setdefault("authorization", Secret(f"Bearer {key.reveal()}"))
    return Upstream(
        name=upstream.name,
        kind=upstream.kind,
        scheme=address.scheme,
        host=address.host,
        port=address.port,
        path=address.path,
        headers=tuple(sorted(headers.items(), key=lambda header: header[0])),
        query=urlencode({name: value.reveal() for name, value in upstream.query.items()}),
        ca_file=None if upstream.ca_file is None else str(upstream.ca_file),
        timeouts=config.timeouts_for(upstream),
        concurrency=snapshot.Concurrency(**upstream.concurrency.model_dump()),
        max_loras=max_loras,
        options=MappingProxyType(upstream.options.model_dump(exclude_none=True) if upstream.options else {}),
    )


def _leaves_at(upstream: UpstreamSettings, status: UpstreamStatus) -> float:
    """When the upstream's models leave the list if it stays as it is."""
    is_down = status.state in (UpstreamState.DOWN, UpstreamState.FAILED)
    return status.since + upstream.hide_after if is_down and upstream.when_down == "hide" else math.inf


def _without(_: str, listed: tuple[tuple[ListedModel, ...], frozenset[str]]) -> tuple[ListedModel, ...]:
    """The models of a list that are not among these adapters."""
    models, adapters = listed
    return tuple(model for model in models if model.parent is None or model.id not in adapters)


def _given(_: None, offerings: tuple[Offering, ...]) -> tuple[Names, Names]:
    """The names that upstreams give: of models, and of adapters that somebody else has loaded."""
    return _together(each.models for each in offerings), _together(each.foreign for each in offerings)


def _in_order(_: None, named: tuple[tuple[str, Named], ...]) -> Names:
    return Names.of(named)


def _together(groups: Iterable[Mapping[str, Place]]) -> Names:
    """A name that several upstreams give leads to all of them."""
    places: dict[str, list[Place]] = {}
    for group in groups:
        for name, place in group.items():
            places.setdefault(name, []).append(place)
    return Names.of((name, naming.of_upstreams(name, there)) for name, there in places.items())


def _wanted(offering: Offering, name: str, roll: Roll) -> Wanted:
    """What a target of the file means."""
    adapter = roll.adapters.get(name)
    if adapter is not None and adapter.current is not None:
        return Wanted(offering, adapter.current.places.get(offering) or offering.named(name), adapter)
    exact = roll.adapters.get(name.partition("@")[0])
    version = exact.versions[name] if exact is not None and name in exact.exact else None
    place = None if version is None else version.places.get(offering)
    return Wanted(offering, place or offering.named(name), None)
