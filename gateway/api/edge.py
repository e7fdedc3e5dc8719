"""The ASGI application: default deny, then the data plane for what is hot and FastAPI for the rest.

The inference endpoints never touch FastAPI: it costs more for a request than the whole data plane (docs/adr/0004).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from gateway.api.addresses import Addresses
from gateway.api.auth import authorise
from gateway.api.failures import Failures
from gateway.api.routes import Access, RouteTable
from gateway.api.users import Identification
from gateway.dataplane.admit import new_request_id
from gateway.dataplane.pipeline import Pipeline
from gateway.dataplane.reply import ClientConnection, Message, Receive, Reply, Send
from gateway.dataplane.upstreams import SnapshotHolder
from gateway.domain.call import Client
from gateway.domain.errors import Forbidden, GatewayError, MethodNotAllowed, NotFound, UnsupportedMediaType
from gateway.telemetry.metrics import Metrics

#: Said in every answer to a key whose prompts and answers are written down.
_LOGGED = (b"x-gateway-content-logged", b"true")
_NO_CLIENT = Client()  # of a route that takes no client's key


class Edge:
    """Called by the server for each request."""

    def __init__(
        self,
        pipeline: Pipeline,
        pages: FastAPI,
        snapshots: SnapshotHolder,
        metrics: Metrics,
        table: RouteTable,
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        unlisted = [
            route
            for route in pages.routes
            if not isinstance(route, APIRoute)
            or not (route.methods or {""}) <= (table.methods(_example(route.path)) or {}).keys()
        ]
        if unlisted:
            raise RuntimeError(f"routes without a rule in api/routes.py: {unlisted}")
        self._pipeline = pipeline
        self._pages = pages
        self._snapshots = snapshots
        self._metrics = metrics
        self._table = table
        self._addresses = Addresses(trusted_proxies)
        self._failures = Failures()
        self._identification = Identification()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        connection: ClientConnection = scope["extensions"]["gateway"]
        headers = dict(scope["headers"])
        peer = (scope.get("client") or ("",))[0]
        path: str = scope["path"]
        if path.startswith("/v1//"):  # Open WebUI's plural base URLs keep their trailing slash
            path = scope["path"] = "/v1/" + path[5:].lstrip("/")
        try:
            methods = self._table.methods(path)
            rule = (methods or {}).get(scope["method"])
            access = rule.access if rule else next(iter(methods.values())).access if methods else Access.KEY
            snapshot = self._snapshots.current
            principal = authorise(snapshot, access, headers, peer)
            if principal.log_content:
                send = _announcing(send)
            if rule is None:
                raise _no_route(scope["method"], path, methods)
            client = _NO_CLIENT
            if access is Access.KEY:
                acts = scope["method"] != "GET"
                client = self._identification.client(snapshot.people, principal, headers, acts=acts)
            if rule.endpoint is not None and not principal.may_call(rule.endpoint):
                raise Forbidden(f"This key may not use {rule.endpoint.value}: an operator can allow it (endpoints).")
            if rule.endpoint is not None and not _is_json(headers.get(b"content-type", b"")):
                raise UnsupportedMediaType("Send the body as 'Content-Type: application/json'.")
        except GatewayError as error:
            told = self._judged(error, headers, peer)
            self._metrics.refused(told.code or told.type)
            await Reply(send, connection, new_request_id()).fail(told)
            return
        if rule.endpoint is not None:
            await self._pipeline.serve(rule.endpoint, principal, client, receive, send, connection)
        else:
            scope["client_address"] = self._addresses.client(peer, headers)
            scope["principal"], scope["caller"] = principal, client
            scope["may_observe"] = partial(self._may_observe, headers, peer)
            await self._pages(scope, receive, send)

    def _judged(self, error: GatewayError, headers: dict[bytes, bytes], peer: str) -> GatewayError:
        """What the client is told, which a wrong key too many makes another one."""
        return self._failures.judged(error, self._addresses.client(peer, headers))

    def _may_observe(self, headers: dict[bytes, bytes], peer: str) -> bool:
        """Whether a page that is open may say more."""
        try:
            authorise(self._snapshots.current, Access.OBSERVER, headers, peer)
        except GatewayError as error:
            self._judged(error, headers, peer)
            return False
        return True


def _announcing(send: Send) -> Send:
    async def announcing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), _LOGGED]
        await send(message)

    return announcing


def _is_json(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == b"application/json"


def _no_route(method: str, path: str, methods: dict[str, Any] | None) -> GatewayError:
    if methods:
        return MethodNotAllowed(f"{path} takes {', '.join(sorted(methods))}, not {method[:20]}.", methods)
    return NotFound(f"There is no {method[:20]} {path[:200]}.")


def _example(path: str) -> str:
    """A path that a route with parameters matches."""
    return re.sub(r"\{[^}]*\}", "example", path)
