"""The log of administrative acts: who has done what, and the page that shows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response

from gateway.api import answers, bodies
from gateway.api.auth import ADMIN
from gateway.domain.audit import Act, Actor, Row
from gateway.domain.errors import GatewayError
from gateway.domain.principal import Principal


class Audit(Protocol):
    """The log, as it is kept."""

    async def note(self, act: Act) -> None:
        """The act is in the log, durably.  Raises StorageError."""
        ...

    async def rows(self, after: int, limit: int) -> list[Row]:
        """The rows whose number is above `after`, oldest first."""
        ...


def actor(request: Request) -> Actor:
    """Who acts with this request."""
    principal: Principal = request.scope["principal"]
    name = principal.name if principal is ADMIN else f"key {principal.name}"
    return Actor(name, request.scope["client_address"])


@asynccontextmanager
async def noted(audit: Audit, request: Request, act: str, target: str, **detail: Any) -> AsyncIterator[None]:
    """An act that happens in the block is in the log when the block has ended, and so is one that was refused there."""
    async with refusals_noted(audit, request, act, target, **detail):
        yield
    await audit.note(Act(actor(request), act, target, detail=detail))


@asynccontextmanager
async def refusals_noted(audit: Audit, request: Request, act: str, target: str, **detail: Any) -> AsyncIterator[None]:
    """The same for an act that is in the log by itself: only its refusal is noted."""
    try:
        yield
    except GatewayError as error:
        await audit.note(Act(actor(request), act, target, error.code or error.type, detail))
        raise


def routes(app: FastAPI, audit: Audit) -> None:
    """Adds the route."""

    @app.get("/admin/v1/audit")
    async def rows(request: Request) -> Response:
        span = bodies.query(request, bodies.Span)
        found = await audit.rows(span.after, span.limit + 1)
        shown = [asdict(row) for row in found[: span.limit]]
        return answers.page({"object": "list", "data": shown, "has_more": len(found) > span.limit})
