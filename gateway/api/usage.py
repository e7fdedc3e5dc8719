"""What was used and what it cost: for the operator, for the holder of a key, and for billing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response

from gateway.api import answers, bodies
from gateway.domain.csvtext import csv_text
from gateway.domain.entry import SUMS
from gateway.domain.errors import GatewayError
from gateway.domain.principal import Principal

Row = dict[str, Any]

_CSV = "text/csv; charset=utf-8"


class Usage(Protocol):
    """What the ledger knows.  Days are UTC's, and of those that are given both are included.  All raise errors of
    gateway.domain.errors."""

    @property
    def trouble(self) -> GatewayError | None:
        """Why nothing can be written at this moment, None when it can."""
        ...

    async def summary(self, by: str, since: date | None, until: date | None, key: str | None = None) -> list[Row]:
        """The sums for each value of `by` (schema `Usage` of api/openapi.py), of one key if it is given."""
        ...

    async def requests(
        self, since: date | None, until: date | None, after: str | None, limit: int
    ) -> tuple[list[Row], bool]:
        """The rows of requests that ended then (schema `UsageRequest`), behind the one with the id `after`, and whether
        there are more."""
        ...


def routes(app: FastAPI, usage: Usage) -> None:
    """Adds the routes.  Who may use which is decided by api/routes.py."""

    @app.get("/admin/v1/usage")
    async def everybodys(request: Request) -> Response:
        return await summary(bodies.query(request, bodies.Report), None)

    @app.get("/v1/usage/me")
    async def own(request: Request) -> Response:
        principal: Principal = request.scope["principal"]
        return await summary(bodies.query(request, bodies.Report), principal.key)

    @app.get("/admin/v1/usage/requests")
    async def requests(request: Request) -> Response:
        wanted = bodies.query(request, bodies.RequestsPage)
        rows, more = await usage.requests(wanted.since, wanted.until, wanted.after, wanted.limit)
        if wanted.format == "csv":
            return _table(rows, {"x-has-more": "true" if more else "false"})
        return answers.page({"object": "list", "data": rows, "has_more": more})

    async def summary(wanted: bodies.Report, key: str | None) -> Response:
        rows = await usage.summary(wanted.by, wanted.since, wanted.until, key)
        if wanted.format == "csv":
            return _table(rows)
        total = {name: sum(row[name] for row in rows) for name in ("requests", *SUMS)}
        return answers.page({"object": "list", "by": wanted.by, "data": rows, "total": total})


def _table(rows: Sequence[Row], headers: Mapping[str, str] | None = None) -> Response:
    fixed = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
    return Response(csv_text(rows), media_type=_CSV, headers={**fixed, **(headers or {})})
