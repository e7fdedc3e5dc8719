"""Model name → ordered targets.  Pure: the same snapshot and call always give the same plan."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from gateway.domain.errors import model_not_for, model_not_found
from gateway.domain.people import Bound
from gateway.domain.principal import ANONYMOUS, Principal, permits
from gateway.domain.snapshot import Readiness, Route, Snapshot, Split, Target


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to try, in order.  `waiting` is empty unless no target is ready and some may become so."""

    route: Route
    targets: tuple[Target, ...]
    waiting: tuple[Target, ...] = ()


def plan(
    snapshot: Snapshot,
    model: str,
    task: str = "",
    sticky: str = "",
    principal: Principal = ANONYMOUS,
    bounds: tuple[Bound, ...] = (),
) -> Plan:
    """The plan for a public model name, for one who is known by `sticky` where the name's traffic is split.

    `task` is Open WebUI's background task, which may have a model of its own: that one answers while it can, and nobody
    waits for it.  `bounds`: what the person behind the key may use.  Raises NotFound for a name that no route has or
    that does not exist for the principal, Forbidden for one that is out of bounds.
    """
    route = snapshot.routes.get(model)
    if route is None or not snapshot.people.admits(principal, model):
        raise model_not_found(model)
    within(bounds, model)
    if task and (substitute := _for_task(snapshot, task, principal, bounds)) is not None:
        planned = _plan(substitute, sticky)
        if planned.targets:
            return planned
    return _plan(route, sticky)


def within(bounds: tuple[Bound, ...], model: str) -> None:
    """Raises Forbidden, which says whose bound it is, for a model that is out of bounds."""
    for bound in bounds:
        if not permits(bound.models, model):
            raise model_not_for(model, bound.whose)


def plan_again(snapshot: Snapshot, model: str, adapter: str) -> Plan:
    """The plan for a request that was admitted to a version of an adapter (`name@version`) and did not find it in the
    engine: it keeps that version, whatever the name that it asked for (`model`) points to by now.

    Raises NotFound when the version is gone.
    """
    route = snapshot.routes.get(model)
    if route is not None and (same := tuple(t for t in _everywhere(route) if t.adapter == adapter)):
        return _by_readiness(route, same)
    if (exact := snapshot.routes.get(adapter)) is None:
        raise model_not_found(adapter)
    return _by_readiness(exact, exact.targets)


def share(salt: str, sticky: str) -> float:
    """Where in [0, 1) somebody stands when a name's traffic is split: the same in every process, and evenly spread."""
    digest = blake2b(f"{salt}\0{sticky}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # as many bits as a float holds, so that it never rounds up to 1


def _plan(route: Route, sticky: str) -> Plan:
    return _by_readiness(route, route.targets if route.split is None else _own(route.split, sticky) or route.targets)


def _own(split: Split, sticky: str) -> tuple[Target, ...]:
    """The targets of the caller's version, none for the route's own.  A version that nobody can answer for is as if it
    had no share; one that is loading is waited for, so that nobody changes versions because an engine restarts."""
    place = share(split.salt, sticky)
    variant = next((variant for variant in split.variants if place < variant.below), None)
    if variant is None or all(target.readiness is Readiness.DOWN for target in variant.targets):
        return ()
    return variant.targets


def _by_readiness(route: Route, targets: tuple[Target, ...]) -> Plan:
    ready = tuple(t for t in targets if t.readiness is Readiness.READY)
    waiting = () if ready else tuple(t for t in targets if t.readiness is Readiness.LOADING)
    return Plan(route, ready, waiting)


def _everywhere(route: Route) -> tuple[Target, ...]:
    variants = () if route.split is None else route.split.variants
    return (*route.targets, *(target for variant in variants for target in variant.targets))


def _for_task(snapshot: Snapshot, task: str, principal: Principal, bounds: tuple[Bound, ...]) -> Route | None:
    model = snapshot.task_models.get(task) or snapshot.task_models.get("*")
    if model is None or not snapshot.people.admits(principal, model):
        return None
    return snapshot.routes.get(model) if all(permits(bound.models, model) for bound in bounds) else None
