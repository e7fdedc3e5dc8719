"""Model name → ordered targets.  Pure: the same snapshot and call always give the same plan."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.domain.errors import model_not_found
from gateway.domain.snapshot import Readiness, Route, Snapshot, Target


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to try, in order.  `waiting` is empty unless no target is ready and some may become so."""

    route: Route
    targets: tuple[Target, ...]
    waiting: tuple[Target, ...] = ()


def plan(snapshot: Snapshot, model: str, task: str = "") -> Plan:
    """The plan for a public model name; `task` is Open WebUI's background task, which may have a model of its own: that
    one answers while it can, and nobody waits for it.

    Raises NotFound for a name that no route has.
    """
    route = snapshot.routes.get(model)
    if route is None:
        raise model_not_found(model)
    substitute = _for_task(snapshot, task)
    if substitute is not None and any(t.readiness is Readiness.READY for t in substitute.targets):
        route = substitute
    ready = tuple(t for t in route.targets if t.readiness is Readiness.READY)
    waiting = () if ready else tuple(t for t in route.targets if t.readiness is Readiness.LOADING)
    return Plan(route, ready, waiting)


def _for_task(snapshot: Snapshot, task: str) -> Route | None:
    if not task or not snapshot.task_models:
        return None
    model = snapshot.task_models.get(task) or snapshot.task_models.get("*")
    return None if model is None else snapshot.routes.get(model)
