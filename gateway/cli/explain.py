"""`gateway explain`: where a request for a model would go, in order, and why.  Sends nothing.

The answer is the one that a running gateway would compile and plan, with what only the upstreams can say filled in as
if they agreed, and marked as such.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from gateway.cli.found import Found, find_adapters
from gateway.cli.options import AsJson, ConfigFile, read
from gateway.cli.output import Failure, complain, print_json, print_table, say
from gateway.controlplane.compiler import compile
from gateway.controlplane.config import Config, UpstreamSettings
from gateway.controlplane.observed import AdapterStatus, Observed, Phase, UpstreamState, UpstreamStatus
from gateway.controlplane.problems import nearest
from gateway.domain.errors import NotFound
from gateway.domain.listing import ListedModel
from gateway.domain.plan import Plan, plan
from gateway.domain.snapshot import Readiness, Snapshot, Target


@dataclass(frozen=True, slots=True)
class Step:
    """One target of the plan, as people are told of it.  `known`: it follows from the file alone."""

    upstream: str
    kind: str
    address: str
    model: str
    adapter: str | None
    known: bool
    why: str
    parameters: str


def explain(
    config: ConfigFile,
    model: Annotated[str, typer.Argument(help="The public name that a client would ask for.", metavar="MODEL")],
    task: Annotated[str, typer.Option(help="As one of Open WebUI's background tasks, e.g. title_generation.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print where a request for MODEL would go, in order, and why.  Sends nothing."""
    settings = read(config)
    found = find_adapters(settings, os.environ)
    snapshot = compile(settings, _assumed(settings, found, model), version=0)
    try:
        planned = plan(snapshot, model, task)
    except NotFound:
        raise Failure(f"{model}: no model of this name; {nearest(model, snapshot.routes, 'model')}") from None
    steps = [_step(settings, snapshot, found, planned.route.model, target) for target in planned.route.targets]
    if as_json:
        print_json({"model": model, "answers_as": planned.route.model, "targets": [asdict(step) for step in steps]})
        return
    _tell(settings, model, planned, task, steps)
    complain(*(f"note: {note}" for note in found.notes))


def _assumed(config: Config, found: Found, model: str) -> Observed:
    """All upstreams up, with the models that the file names; those whose models it does not name have this one."""
    states = {}
    for upstream in config.upstreams:
        names = list(_named(upstream) or ())
        if upstream.engine is None:  # what an engine has is known
            names += [t.model for m in config.models for t in m.targets if t.upstream == upstream.name]
        if _is_open(upstream) and model.startswith(upstream.prefix) and model not in found.names:
            names.append(model.removeprefix(upstream.prefix))
        held = [f"{a.name}@{a.version}" for a in found.adapters if upstream.name in a.upstreams]
        plain = {a.name for a in found.adapters} | set(held)
        listed = [ListedModel(name) for name in dict.fromkeys(names) if name and name not in plain]
        listed += [ListedModel(name, parent=next(iter(names), "")) for name in held]
        states[upstream.name] = UpstreamStatus(UpstreamState.UP, 0.0, models=tuple(listed))
    adapters = tuple(
        AdapterStatus(
            a.name,
            Phase.READY,
            a.version,
            path=a.path,
            upstreams=a.upstreams,
            held=frozenset(a.upstreams),
            current=True,
        )
        for a in found.adapters
    )
    return Observed(states, adapters)


def _named(upstream: UpstreamSettings) -> tuple[str, ...] | None:
    """The models that the file says it has; None where only the upstream can say."""
    return (upstream.engine.public_name,) if upstream.engine is not None else upstream.models


def _is_open(upstream: UpstreamSettings) -> bool:
    return _named(upstream) is None


def _step(config: Config, snapshot: Snapshot, found: Found, name: str, target: Target) -> Step:
    index, upstream = next((i, u) for i, u in enumerate(config.upstreams) if u.name == target.upstream)
    own = next((i for i, model in enumerate(config.models) if model.id == name), None)
    known = not _is_open(upstream)
    if own is not None:
        reason = f"models[{own}].targets"
    elif target.adapter is not None:
        path = next(a.path for a in found.adapters if target.adapter == f"{a.name}@{a.version}")
        reason = f"the adapter in {path} fits its base model"
    elif upstream.engine is not None:
        reason = f"upstreams[{index}].engine is to serve it"
    elif known:
        reason = f"upstreams[{index}].models names it"
    else:
        reason = f"if upstreams[{index}] lists it: unknown until it is asked"
    if own is not None and not known and target.adapter is None:
        reason += "; whether the upstream has it is unknown until it is asked"
    if target.readiness is not Readiness.READY:
        reason += f"; never: {target.note}"
    return Step(
        upstream.name,
        upstream.kind,
        upstream.base_url or "an engine that the gateway runs",
        target.model,
        target.adapter,
        known,
        reason,
        _parameters(target),
    )


def _parameters(target: Target) -> str:
    """What happens to a request on the way, in words; values are left out, they may be secrets."""
    policy = target.parameters
    parts = [f"{old} → {new}" for old, new in policy.rename.items()]
    parts += [f"without {name}" for name in sorted(policy.drop)]
    parts += [f"sets {name}" for name in policy.set]
    parts += ["without tools"] if target.strip_tools else []
    parts += [] if target.developer_role else ["developer → system"]
    return ", ".join(parts)


def _tell(config: Config, asked: str, planned: Plan, task: str, steps: list[Step]) -> None:
    if planned.route.model != asked:
        say(f"{asked}: openwebui.tasks sends the task {task} to {planned.route.model}.")
    own = planned.route.model in {model.id for model in config.models}
    if own or any(step.known for step in steps):
        order = "tried in this order while nothing was sent to the client" if len(steps) > 1 else "one target"
        say(f"{planned.route.model}: {order}.")
    else:
        say(f"{planned.route.model}: not named in the file; it is answered if an upstream lists it.")
    numbers = itertools.count(1)
    print_table(
        ("", "upstream", "model there", "address", "why", "parameters"),
        [
            (
                next(numbers) if s.known or own else "?",
                f"{s.upstream} ({s.kind})",
                s.model,
                s.address,
                s.why,
                s.parameters,
            )
            for s in steps
        ],
    )
