"""What Open WebUI asks of a connection of the kind "llama.cpp", so that its own buttons load and eject adapters.

It is llama.cpp's contract for its router, at the root beside /v1, as far as Open WebUI 0.12 uses it
(backend/open_webui/routers/openai.py, MODEL_MANAGEMENT_ENDPOINTS).  Whoever loads and ejects needs the right `adapters`
of a client's key, and reaches no names that the key may not use.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from pydantic import ConfigDict

from gateway.api import answers, bodies
from gateway.api.adapters import AdapterAdmin, loaded
from gateway.api.audit import Audit, noted
from gateway.dataplane.upstreams import SnapshotHolder
from gateway.domain.errors import Forbidden, InvalidRequest, NotFound, model_not_found
from gateway.domain.principal import ADAPTERS_RIGHT, Principal


class Model(bodies.Body):
    """The model that a button belongs to.  What else is sent (`instance_id`) means nothing here."""

    model_config = ConfigDict(extra="ignore")

    model: str


def routes(app: FastAPI, snapshots: SnapshotHolder, admin: AdapterAdmin, audit: Audit) -> None:
    """Adds the routes, but for GET /models, which is GET /v1/models under another path."""

    @app.post("/models/load")
    async def load(request: Request) -> Response:
        name, version = await _adapter(request)
        async with noted(audit, request, "adapter.load", name, version=version):
            await loaded(request, admin.load(name, version))
        return answers.page({"success": True})

    @app.post("/models/unload")
    async def unload(request: Request) -> Response:
        name, version = await _adapter(request)
        async with noted(audit, request, "adapter.unload", name, version=version):
            await admin.unload(name, version)
        return answers.page({"success": True})

    @app.post("/models")
    async def download() -> Response:
        raise InvalidRequest(
            "Adapters are not downloaded from here: an operator adds them with 'gateway adapters add'.",
            code="not_supported",
        )

    @app.delete("/models")
    async def delete() -> Response:
        raise InvalidRequest(
            "Adapters are not deleted from here: an operator removes them with 'gateway adapters remove'.",
            code="not_supported",
        )

    async def _adapter(request: Request) -> tuple[str, str | None]:
        """The adapter that the button belongs to, and its version if that was named."""
        principal: Principal = request.scope["principal"]
        if ADAPTERS_RIGHT not in principal.allow:
            raise Forbidden(
                f"This key may not load or eject adapters: give it the right with 'allow: [{ADAPTERS_RIGHT}]'."
            )
        model = (await bodies.read(request, Model)).model
        if not principal.may_use(model) or model not in snapshots.current.routes:
            raise model_not_found(model)
        name, _, version = model.partition("@")
        try:
            await admin.show(name)
        except NotFound:
            raise InvalidRequest(
                f"{model} is no adapter: only adapters are loaded and ejected here.", param="model"
            ) from None
        return name, version or None
