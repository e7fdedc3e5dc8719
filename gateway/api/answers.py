"""Answers in JSON, with the headers that each of them has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Response

from gateway.dataplane.admit import new_request_id
from gateway.domain.errors import GatewayError


def raw(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """What is JSON already."""
    fixed = {"x-request-id": new_request_id(), "x-content-type-options": "nosniff", "cache-control": "no-store"}
    return Response(body, status, media_type="application/json", headers={**fixed, **(headers or {})})


def page(value: Any, status: int = 200) -> Response:
    """One object."""
    return raw(orjson.dumps(value, default=str), status)


def rows(values: list[dict[str, Any]]) -> Response:
    """A list in OpenAI's form."""
    return page({"object": "list", "data": values})


def refusal(error: GatewayError) -> Response:
    """An error in OpenAI's form."""
    return raw(error.body(), error.status, {name.decode(): value.decode() for name, value in error.headers()})
