"""Configuration and what is observed → the snapshot that the data plane serves from.  Pure.

Which name is answered where:

- `models:` of the file are names of their own;
- every model of an upstream is offered under `prefix + its name`; upstreams that offer the same name are targets of
  it, in file order;
- an adapter that the gateway loads is offered under its plain name, which points to its current version, and under
  `name@version`, which is not listed.

A name belongs to the first of these that claims it, in this order.  A name stays routed while its upstream is down, so
that a request hears "not now" and never "no such model".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from urllib.parse import urlencode

from gateway.controlplane import values
from gateway.controlplane.cards import Facts, card, described, facts_of, shared
from gateway.controlplane.config import Config, Description, ModelSettings, UpstreamSettings
from gateway.controlplane.observed import (
    AdapterStatus,
    EngineEndpoint,
    Observed,
    Phase,
    UpstreamState,
    UpstreamStatus,
)
from gateway.domain import snapshot
from gateway.domain.listing import ListedModel
from gateway.domain.principal import Principal
from gateway.domain.secret import Secret
from gateway.domain.snapshot import Price, Readiness, Route, Snapshot, Target, Upstream

_LOOPBACK = "127.0.0.1"
_UNSEEN = UpstreamStatus(UpstreamState.STARTING, since=0.0)
_TOOLS_ARGUMENT = "--enable-auto-tool-choice"  # without it vLLM 0.32 answers 400 to a request with tools


@dataclass(frozen=True, slots=True)
class _Offer:
    """One place that answers for a name.  `listed`: `/v1/models` may show the name because of it."""

    target: Target
    facts: Facts
    listed: bool


def compile(config: Config, observed: Observed, version: int) -> Snapshot:
    """The snapshot of this moment."""
    scene = _Scene(config, observed)
    offers = scene.offers()
    cards = {
        name: card(name, facts, observed.started)
        for name, places in offers.items()
        if (facts := scene.facts(name, places)) is not None
    }
    return Snapshot(
        version,
        routes=MappingProxyType({n: Route(n, tuple(p.target for p in places)) for n, places in offers.items()}),
        upstreams=MappingProxyType(
            {u.name: upstream_record(config, u, scene.status(u.name).endpoint) for u in config.upstreams}
        ),
        cards=MappingProxyType(cards),
        keys=MappingProxyType(
            {_digest(key.key): Principal(key.name, frozenset(key.allow)) for key in config.auth.keys}
        ),
        auth_required=config.auth.required,
        admin_key=None if config.auth.admin_key is None else _digest(config.auth.admin_key),
        task_models=MappingProxyType(dict(config.openwebui.tasks)),
    )


def model_names(config: Config, observed: Observed) -> frozenset[str]:
    """The public names that no adapter can have: those of the file and of models that are no adapters."""
    scene = _Scene(config, observed)
    listed = (u.prefix + m.id for u in config.upstreams for m in scene.models(u) if m.parent is None)
    return frozenset([*(model.id for model in config.models), *listed])


def next_change(config: Config, observed: Observed) -> float | None:
    """When `compile` will give something else although nothing happens: the next moment at which models of an upstream
    that is down leave the list."""
    moments = (
        status.since + upstream.hide_after
        for upstream in config.upstreams
        if (status := observed.upstreams.get(upstream.name)) is not None and _is_down(status)
    )
    return min((moment for moment in moments if moment > observed.now), default=None)


def upstream_record(config: Config, upstream: UpstreamSettings, endpoint: EngineEndpoint | None = None) -> Upstream:
    """What backend and transport need to speak to it.  An engine that does not listen yet has port 0."""
    headers = dict(upstream.headers)
    if upstream.engine is not None:
        host, port = (endpoint.host, endpoint.port) if endpoint is not None else (_LOOPBACK, 0)
        address = values.Address("http", host, port, "/v1")
        key = endpoint.key if endpoint is not None else None
    else:
        address = values.address(upstream.base_url or "")
        key = upstream.api_key
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
        options=MappingProxyType(upstream.options.model_dump(exclude_none=True) if upstream.options else {}),
    )


class _Scene:
    """One configuration and one moment."""

    def __init__(self, config: Config, observed: Observed) -> None:
        self._config = config
        self._observed = observed
        self._upstreams = {upstream.name: upstream for upstream in config.upstreams}
        self._own_models = {model.id: model for model in config.models}
        self._ours = {adapter.engine_name for adapter in observed.adapters if adapter.version}
        self._routed = [adapter for adapter in observed.adapters if adapter.routed]
        self._lists = {upstream.name: _listed_by(upstream, self.status(upstream.name)) for upstream in config.upstreams}
        self._bases = {
            name: next((model for model in listed.values() if model.parent is None), None)
            for name, listed in self._lists.items()
        }

    def status(self, upstream: str) -> UpstreamStatus:
        return self._observed.upstreams.get(upstream, _UNSEEN)

    def offers(self) -> Mapping[str, tuple[_Offer, ...]]:
        """Every public name, in the order of the list, with its places in order."""
        found = {model.id: tuple(self._own(model)) for model in self._config.models}
        models: dict[str, list[_Offer]] = {}
        foreign: dict[str, list[_Offer]] = {}  # adapters that somebody else loaded
        for upstream in self._config.upstreams:
            for listed in self.models(upstream):
                group = models if listed.parent is None else foreign
                group.setdefault(upstream.prefix + listed.id, []).append(self._listed(upstream, listed))
        for group in (models, *self._adapters(), foreign):
            for name, places in group.items():
                found.setdefault(name, tuple(places))
        return found

    def facts(self, name: str, places: Iterable[_Offer]) -> Facts | None:
        """What the list says of a name; None for one that it leaves out."""
        shown = [place.facts for place in places if place.listed]
        if not shown:
            return None
        return described(shared(shown), self._own_models.get(name))

    def models(self, upstream: UpstreamSettings) -> Iterator[ListedModel]:
        """What the upstream offers under names of its own: what it lists, no more than it is to offer, without the
        adapters that are the gateway's.  What is configured stands in for a list that never came."""
        status = self.status(upstream.name)
        listed = {id: model for id, model in self._lists[upstream.name].items() if id not in self._ours}
        if upstream.models is None:
            yield from listed.values()
            return
        for name in upstream.models:
            if (model := _find(listed, upstream, name)) is not None:
                yield replace(model, id=name)
            elif not _knows_all(upstream, status):
                yield ListedModel(name)

    def _own(self, model: ModelSettings) -> Iterator[_Offer]:
        """The places of a name of the file, whose own settings count for each of them."""
        for wanted in model.targets:
            upstream = self._upstreams[wanted.upstream]
            place = self._adapter_on(upstream, wanted.model) or self._named(upstream, wanted.model)
            target = replace(
                place.target,
                context_length=model.context_length or place.target.context_length,
                price=_price(model) or place.target.price,
                strip_tools=place.target.strip_tools if model.tools is None else not model.tools,
            )
            yield replace(place, target=target, facts=replace(place.facts, name=None, description=None, parent=None))

    def _named(self, upstream: UpstreamSettings, name: str) -> _Offer:
        status = self.status(upstream.name)
        if (model := _find(self._lists[upstream.name], upstream, name)) is not None:
            return self._listed(upstream, replace(model, id=name))
        place = self._listed(upstream, ListedModel(name))
        if status.state is UpstreamState.UP and _knows_all(upstream, status):
            note = f"the upstream '{upstream.name}' has no model '{name}'"
            return replace(place, target=replace(place.target, readiness=Readiness.DOWN, note=note))
        return place

    def _listed(self, upstream: UpstreamSettings, model: ListedModel) -> _Offer:
        facts = _facts(upstream, model)
        if model.parent is not None:
            facts = replace(facts, parent=upstream.prefix + model.parent)
        return self._offer(upstream, _target(upstream, model.id, model.id, facts), facts)

    def _offer(self, upstream: UpstreamSettings, target: Target, facts: Facts, listed: bool = True) -> _Offer:
        """The place as the state of its upstream makes it."""
        status = self.status(upstream.name)
        readiness, note = _readiness(upstream, status)
        if readiness is not Readiness.READY:
            target = replace(target, readiness=readiness, note=note)
        hidden = (
            upstream.when_down == "hide"
            and _is_down(status)
            and self._observed.now - status.since >= upstream.hide_after
        )
        return _Offer(target, facts, listed and not hidden)

    def _adapters(self) -> tuple[dict[str, list[_Offer]], dict[str, list[_Offer]]]:
        """Adapters by their plain names, and every version by its exact one."""
        plain: dict[str, list[_Offer]] = {}
        exact: dict[str, list[_Offer]] = {}
        for adapter in self._routed:
            for upstream in self._config.upstreams:
                if upstream.name in adapter.upstreams:
                    place = self._adapter(upstream, adapter)
                    exact.setdefault(adapter.engine_name, []).append(replace(place, listed=False))
                    if adapter.current:
                        plain.setdefault(adapter.name, []).append(place)
        return plain, exact

    def _adapter_on(self, upstream: UpstreamSettings, name: str) -> _Offer | None:
        for adapter in self._routed:
            named = adapter.engine_name == name or (adapter.current and adapter.name == name)
            if named and upstream.name in adapter.upstreams:
                return self._adapter(upstream, adapter)
        return None

    def _adapter(self, upstream: UpstreamSettings, adapter: AdapterStatus) -> _Offer:
        status = self.status(upstream.name)
        base = self._bases[upstream.name]
        inherited = _facts(upstream, base) if base is not None else Facts(upstream.name)
        facts = replace(
            inherited,
            name=adapter.name,
            description=None if base is None else f"LoRA adapter on {upstream.prefix}{base.id}",
            tags=(*inherited.tags, "adapter"),
            created=None,
            parent=None if base is None else upstream.prefix + base.id,
        )
        facts = described(facts, upstream.overrides.get(adapter.name))
        policy_of = adapter.name if adapter.name in upstream.overrides or base is None else base.id
        target = replace(_target(upstream, adapter.engine_name, policy_of, facts), adapter=adapter.engine_name)
        if upstream.name in adapter.refused:
            note = f"the upstream '{upstream.name}' does not take the adapter '{adapter.name}'"
            target = replace(target, readiness=Readiness.DOWN, note=note)
        elif adapter.engine_name not in status.held:
            note = f"the adapter '{adapter.name}' is being loaded"
            target = replace(target, readiness=Readiness.LOADING, note=note)
        return self._offer(upstream, target, facts, adapter.phase is not Phase.FAILED)


def _target(upstream: UpstreamSettings, model: str, policy_of: str, facts: Facts) -> Target:
    override = upstream.overrides.get(policy_of)
    return Target(
        upstream.name,
        model,
        parameters=upstream.policy_for(policy_of),
        strip_tools=facts.tools is False,
        strip_thinking=facts.thinking is False,
        developer_role=upstream.knows_developer_role,
        context_length=facts.context_length,
        price=None if override is None else _price(override),
    )


def _facts(upstream: UpstreamSettings, model: ListedModel) -> Facts:
    facts = facts_of(model, upstream.name)
    if facts.tools is None and upstream.engine is not None:
        facts = replace(facts, tools=any(arg.replace("_", "-") == _TOOLS_ARGUMENT for arg in upstream.engine.args))
    facts = described(facts, upstream.overrides.get(model.id))
    return facts if facts.tags else replace(facts, tags=(upstream.name,))


def _listed_by(upstream: UpstreamSettings, status: UpstreamStatus) -> Mapping[str, ListedModel]:
    """The upstream's list by name; an engine's base model is known before it lists it."""
    listed = {model.id: model for model in status.models}
    if upstream.engine is not None and (name := upstream.engine.public_name) not in listed:
        listed = {name: ListedModel(name), **listed}
    return listed


def _find(listed: Mapping[str, ListedModel], upstream: UpstreamSettings, name: str) -> ListedModel | None:
    """The model that the upstream knows by this name; Ollama takes a name without a tag for its `latest`."""
    found = listed.get(name)
    return listed.get(f"{name}:latest") if found is None and upstream.kind == "ollama" else found


def _knows_all(upstream: UpstreamSettings, status: UpstreamStatus) -> bool:
    """Whether what the upstream has not listed is not there; vendors' lists are often shorter than what they serve."""
    came = bool(status.models) or status.state is UpstreamState.UP
    return came and upstream.kind in ("vllm", "ollama")


def _readiness(upstream: UpstreamSettings, status: UpstreamStatus) -> tuple[Readiness, str]:
    """Whether the upstream can be sent anything.  The note is for clients: it holds no address."""
    match status.state:
        case UpstreamState.UP:
            return Readiness.READY, ""
        case UpstreamState.STARTING if upstream.engine is not None:
            progress = f" ({status.progress})" if status.progress else ""
            return Readiness.LOADING, f"the engine '{upstream.name}' is starting{progress}"
        case UpstreamState.STARTING:
            return Readiness.LOADING, f"the upstream '{upstream.name}' was not reached yet"
        case UpstreamState.DOWN:
            return Readiness.DOWN, f"the upstream '{upstream.name}' does not answer"
        case UpstreamState.FAILED:
            return Readiness.DOWN, f"the engine '{upstream.name}' has failed, the operator must look at it"


def _is_down(status: UpstreamStatus) -> bool:
    return status.state in (UpstreamState.DOWN, UpstreamState.FAILED)


def _price(by: Description) -> Price | None:
    return None if by.price is None else Price(by.price.input, by.price.output)


def _digest(key: Secret) -> bytes:
    return hashlib.sha256(key.reveal().encode()).digest()
