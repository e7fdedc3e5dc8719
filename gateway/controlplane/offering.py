"""What one upstream offers at one moment: for each model, where it is answered and what is known of it.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gateway.controlplane.cards import Facts, described, facts_of
from gateway.controlplane.config import Description, UpstreamSettings
from gateway.controlplane.observed import AdapterStatus, Phase, UpstreamState
from gateway.controlplane.pricelist import PriceList
from gateway.domain import money
from gateway.domain.limits import Metered
from gateway.domain.listing import ListedModel
from gateway.domain.snapshot import Readiness, Target

_TOOLS_ARGUMENT = "--enable-auto-tool-choice"  # without it vLLM 0.32 answers 400 to a request with tools


@dataclass(frozen=True, slots=True)
class Place:
    """One place that answers for a name.  `listed`: `/v1/models` may show the name because of it."""

    target: Target
    facts: Facts
    listed: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """An upstream at one moment, as far as its offer depends on it.

    `listed`: the models that it has, without the gateway's own adapters.  `hidden`: it is down for so long that its
    models leave the list.  `started`: Unix time, where a model's own is not known.
    """

    state: UpstreamState
    progress: str
    listed: tuple[ListedModel, ...]
    hidden: bool
    started: int


class Offering:
    """What an upstream offers in one scene."""

    def __init__(self, upstream: UpstreamSettings, scene: Scene, prices: PriceList | None = None) -> None:
        self.upstream = upstream
        self._prices = prices
        self._scene = scene
        self._readiness, self._note = _readiness(upstream, scene)
        self._by_name = _by_name(upstream, scene.listed)
        self._named: dict[str, Place] = {}  # no more than the targets of the file
        self._any_adapter = self._like_its_base()
        #: Public name → its place: of models, and of adapters that somebody else has loaded.
        self.models: dict[str, Place] = {}
        self.foreign: dict[str, Place] = {}
        for model in offered(upstream, scene.state, scene.listed):
            group = self.models if model.parent is None else self.foreign
            group[upstream.prefix + model.id] = self._listed(model)

    def named(self, name: str) -> Place:
        """The place of a model by the upstream's own name, whether it is offered or not."""
        if (place := self._named.get(name)) is None:
            place = self._named[name] = self._look_up(name)
        return place

    def adapter(self, adapter: AdapterStatus) -> Place:
        """The place of a version of an adapter: that of its base model, with what is said of the adapter itself."""
        override = self.upstream.overrides.get(adapter.name)
        facts = described(self._any_adapter.facts, override)
        target = self._any_adapter.target if override is None else self._target(adapter.name, facts)
        name = adapter.engine_name
        readiness, note = self._readiness_of(adapter)
        return Place(
            replace(target, model=name, adapter=name, readiness=readiness, note=note),
            facts,
            adapter.phase is not Phase.FAILED and not self._scene.hidden,
        )

    def _readiness_of(self, adapter: AdapterStatus) -> tuple[Readiness, str]:
        """Whether a request for the adapter can be sent here.  Notes are for clients."""
        if self.upstream.name in adapter.refused:
            note = f"the upstream '{self.upstream.name}' does not take the adapter '{adapter.name}'"
            return Readiness.DOWN, note
        if self._readiness is not Readiness.READY:
            return self._readiness, self._note
        if self.upstream.name in adapter.held:
            return Readiness.READY, ""
        match adapter.phase:
            case Phase.FAILED:
                note = f"the adapter '{adapter.name}' has failed, the operator must look at it"
                return Readiness.DOWN, note
            case Phase.UNLOADED:
                return Readiness.LOADING, f"the adapter '{adapter.name}' is not loaded yet: it is loaded on first use"
            case _:
                return Readiness.LOADING, f"the adapter '{adapter.name}' is being loaded"

    def _look_up(self, name: str) -> Place:
        if (model := _find(self._by_name, self.upstream, name)) is not None:
            return self._listed(replace(model, id=name))
        place = self._listed(ListedModel(name))
        if self._scene.state is UpstreamState.UP and self.upstream.kind in _KINDS_THAT_LIST_ALL:
            note = f"the upstream '{self.upstream.name}' has no model '{name}'"
            return replace(place, target=replace(place.target, readiness=Readiness.DOWN, note=note))
        return place

    def _listed(self, model: ListedModel) -> Place:
        facts = self._facts(model)
        if model.parent is not None:
            facts = replace(facts, parent=self.upstream.prefix + model.parent)
        return Place(self._target(model.id, facts), facts, not self._scene.hidden)

    def _target(self, model: str, facts: Facts) -> Target:
        override = self.upstream.overrides.get(model)
        return Target(
            self.upstream.name,
            model,
            readiness=self._readiness,
            note=self._note,
            parameters=self.upstream.policy_for(model),
            strip_tools=facts.tools is False,
            strip_thinking=facts.thinking is False,
            developer_role=self.upstream.knows_developer_role,
            context_length=facts.context_length,
            price=price_of(override) or (None if self._prices is None else self._prices.price(model)),
            metered=metered_as(f"{self.upstream.name}/{model}", override),
        )

    def _facts(self, model: ListedModel) -> Facts:
        upstream = self.upstream
        facts = facts_of(model, upstream.name, self._scene.started)
        if facts.tools is None and upstream.engine is not None:
            has_tools = any(argument.replace("_", "-") == _TOOLS_ARGUMENT for argument in upstream.engine.args)
            facts = replace(facts, tools=has_tools)
        facts = described(facts, upstream.overrides.get(model.id))
        return facts if facts.tags else replace(facts, tags=(upstream.name,))

    def _like_its_base(self) -> Place:
        """What holds for every adapter that has no settings of its own."""
        upstream = self.upstream
        base = next((model for model in self._by_name.values() if model.parent is None), None)
        if base is None:
            facts = Facts(upstream.name, tags=("adapter",), created=self._scene.started)
            return Place(self._target("", facts), facts, listed=True)
        inherited = self._facts(base)
        facts = replace(
            inherited,
            name=None,  # its own
            description=f"LoRA adapter on {upstream.prefix}{base.id}",
            tags=(*inherited.tags, "adapter"),
            created=self._scene.started,
            parent=upstream.prefix + base.id,
        )
        return Place(self._target(base.id, facts), facts, listed=True)


#: What such an upstream does not list is not there; vendors' lists are often shorter than what they serve.
_KINDS_THAT_LIST_ALL = ("vllm", "ollama")


def offered(upstream: UpstreamSettings, state: UpstreamState, models: Sequence[ListedModel]) -> Iterator[ListedModel]:
    """What the upstream offers under names of its own: what it lists, and no more than it is to offer.  What is
    configured stands in for a list that never came."""
    listed = _by_name(upstream, models)
    if upstream.models is None:
        yield from listed.values()
        return
    knows_all = upstream.kind in _KINDS_THAT_LIST_ALL and (bool(models) or state is UpstreamState.UP)
    for name in upstream.models:
        if (model := _find(listed, upstream, name)) is not None:
            yield replace(model, id=name)
        elif not knows_all:
            yield ListedModel(name)


def _by_name(upstream: UpstreamSettings, models: Sequence[ListedModel]) -> Mapping[str, ListedModel]:
    """The upstream's list by name; an engine's base model is known before it lists it."""
    listed = {model.id: model for model in models}
    if upstream.engine is not None and (name := upstream.engine.public_name) not in listed:
        listed = {name: ListedModel(name), **listed}
    return listed


def _find(listed: Mapping[str, ListedModel], upstream: UpstreamSettings, name: str) -> ListedModel | None:
    """The model that the upstream knows by this name; Ollama takes a name without a tag for its `latest`."""
    found = listed.get(name)
    return listed.get(f"{name}:latest") if found is None and upstream.kind == "ollama" else found


def _readiness(upstream: UpstreamSettings, scene: Scene) -> tuple[Readiness, str]:
    """Whether the upstream can be sent anything.  The note is for clients: it holds no address."""
    match scene.state:
        case UpstreamState.UP:
            return Readiness.READY, ""
        case UpstreamState.STARTING if upstream.engine is not None:
            progress = f" ({scene.progress})" if scene.progress else ""
            return Readiness.LOADING, f"the engine '{upstream.name}' is starting{progress}"
        case UpstreamState.STARTING:
            return Readiness.LOADING, f"the upstream '{upstream.name}' was not reached yet"
        case UpstreamState.DOWN:
            return Readiness.DOWN, f"the upstream '{upstream.name}' does not answer"
        case UpstreamState.FAILED:
            return Readiness.DOWN, f"the engine '{upstream.name}' has failed, the operator must look at it"


def metered_as(name: str, by: Description | None) -> Metered | None:
    """What is limited under this name, where something is."""
    return None if by is None or by.limits is None else Metered(name, by.limits.of_domain())


def price_of(by: Description | None) -> money.Price | None:
    """What the file says a model costs."""
    return None if by is None or by.price is None else by.price.of_domain()
