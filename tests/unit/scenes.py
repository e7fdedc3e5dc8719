"""Configurations and observed moments in a word, for the tests of the compiler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.controlplane.config import Config
from gateway.controlplane.observed import (
    AdapterStatus,
    EngineEndpoint,
    Observed,
    Phase,
    UpstreamState,
    UpstreamStatus,
)
from gateway.domain.listing import ListedModel
from gateway.domain.snapshot import Snapshot


def config(upstreams: Iterable[Mapping[str, Any]], **more: Any) -> Config:
    return Config.model_validate({"upstreams": list(upstreams), **more})


def vllm(name: str, **more: Any) -> dict[str, Any]:
    """One that somebody else runs."""
    return {"name": name, "kind": "vllm", "base_url": f"http://{name}:8000/v1", **more}


def openai(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "openai", "base_url": f"https://{name}.example/v1", **more}


def adapter(
    name: str,
    *upstreams: str,
    version: str = "0123456789ab",
    phase: Phase = Phase.READY,
    current: bool = True,
    canary: float = 0.0,
    held: Iterable[str] | None = None,
    refused: Mapping[str, str] | None = None,
) -> AdapterStatus:
    """One that a request may be sent to wherever it fits, unless it is not Ready or `held` says otherwise."""
    if held is None:
        held = upstreams if phase is Phase.READY else ()
    return AdapterStatus(
        name, phase, version, version.ljust(64, "0"), f"/store/{version}", "base",
        upstreams=upstreams, refused=refused or {}, held=frozenset(held), current=current and not canary, canary=canary,
    )  # fmt: skip


def up(
    *models: str | ListedModel,
    held: Iterable[AdapterStatus] = (),
    foreign: Iterable[str] = (),
    state: UpstreamState = UpstreamState.UP,
    since: float = 0.0,
    progress: str = "",
    endpoint: EngineEndpoint | None = None,
) -> UpstreamStatus:
    """An upstream with these models; the adapters' parent is the first of them."""
    listed = [model if isinstance(model, ListedModel) else ListedModel(model) for model in models]
    adapters = [*(a.engine_name for a in held), *foreign]
    listed += [ListedModel(name, parent=listed[0].id) for name in adapters]
    return UpstreamStatus(state, since, "for the operator only", progress, tuple(listed), endpoint)


def seen(
    upstreams: Mapping[str, UpstreamStatus],
    *adapters: AdapterStatus,
    now: float = 1000.0,
    salts: Mapping[str, str] | None = None,
) -> Observed:
    return Observed(upstreams, adapters, salts or {}, now=now, started=1_700_000_000)


def where(snapshot: Snapshot) -> dict[str, list[str]]:
    """Public name → its targets as `upstream:model`."""
    return {
        name: [f"{target.upstream}:{target.model}" for target in route.targets]
        for name, route in snapshot.routes.items()
    }
