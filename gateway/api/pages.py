"""What FastAPI serves: the list of models, health, metrics and administration.  Each answer comes from memory."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable
from typing import Any, Protocol

import orjson
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from gateway.api import adapters, answers, audit, keys, llamacpp, openapi, openapi_admin, usage
from gateway.dataplane.upstreams import SnapshotHolder
from gateway.domain.errors import GatewayError, model_not_found
from gateway.telemetry.metrics import Metrics

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Administration(Protocol):
    """What the control plane shows."""

    def upstreams(self) -> list[dict[str, Any]]: ...

    def degraded(self) -> dict[str, str]: ...

    def config(self) -> dict[str, Any]: ...


def build(
    snapshots: SnapshotHolder,
    metrics: Metrics,
    administration: Administration,
    draining: Callable[[], bool],
    admin: adapters.AdapterAdmin,
    key_admin: keys.KeyAdmin,
    log: audit.Audit,
    ledger: usage.Usage,
) -> FastAPI:
    """The FastAPI application.  Access was decided before it is called (api/routes.py)."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.routes.clear()

    @app.exception_handler(GatewayError)
    async def refused(request: Request, error: GatewayError) -> Response:
        return answers.refusal(error)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answers.refusal(GatewayError("The gateway failed to serve this request."))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nginx's word for it; nobody reads this

    @app.get("/models")
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        snapshot, principal = snapshots.current, request.scope["principal"]
        admits = snapshot.people.admits
        cards = b",".join([card for name, card in snapshot.cards.items() if admits(principal, name)])
        return answers.raw(b'{"object":"list","data":[' + cards + b"]}")

    @app.get("/v1/models/{id:path}")
    async def model(id: str, request: Request) -> Response:
        snapshot = snapshots.current
        card = snapshot.cards.get(id)
        if card is None and id in snapshot.routes:
            card = orjson.dumps({"id": id, "object": "model", "created": 0, "owned_by": "lora-gateway"})
        if card is None or not snapshot.people.admits(request.scope["principal"], id):
            raise model_not_found(id)
        return answers.raw(card)

    @app.get("/livez")
    async def livez() -> Response:
        return answers.raw(b'{"status":"alive"}')

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        trouble, degraded = ledger.trouble, administration.degraded()
        ready = trouble is None and snapshots.current.ready and not draining()
        if draining():
            status = "draining"
        elif trouble is not None or (ready and degraded):
            status = "degraded"
        else:
            status = "ready" if ready else "starting"
        page: dict[str, Any] = {"status": status}
        if request.scope["may_observe"]():
            page["upstreams"] = [
                {key: row.get(key) for key in ("name", "kind", "state", "message")}
                for row in administration.upstreams()
            ]
            page["ledger"] = {"state": "ok", "message": ""}
            if trouble is not None:
                page["ledger"] = {"state": "degraded", "message": trouble.message}
            page["degraded"] = degraded
        return answers.raw(orjson.dumps(page), 200 if ready else 503, {} if ready else {"retry-after": "2"})

    @app.get("/metrics")
    async def exposition() -> Response:
        # With a thousand adapters in use it is megabytes, and half a second of work.
        return Response(await asyncio.to_thread(metrics.exposition), media_type=_PROMETHEUS)

    @app.get("/openapi.json")
    async def document() -> Response:
        return answers.page(openapi.inference(_version()))

    @app.get("/admin/v1/openapi.json")
    async def admin_document() -> Response:
        return answers.page(openapi_admin.administration(_version()))

    @app.get("/admin/v1/upstreams")
    async def upstreams() -> Response:
        return answers.rows(administration.upstreams())

    @app.get("/admin/v1/config")
    async def config() -> Response:
        return answers.page(administration.config())

    keys.routes(app, key_admin, log)
    audit.routes(app, log)
    usage.routes(app, ledger)
    adapters.routes(app, admin, log)
    llamacpp.routes(app, snapshots, admin, log)
    return app


def _version() -> str:
    return importlib.metadata.version("lora-gateway")
