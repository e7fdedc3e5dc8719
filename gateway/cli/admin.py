"""Talks to a running gateway's administration."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from gateway.cli.output import Failure

_SECONDS = 10.0
_MAX_ANSWER = 16 << 20


def fetch(url: str, admin_key: str | None, path: str) -> list[dict[str, Any]]:
    """The rows of a list below `/admin/v1/`.  Raises Failure."""
    if not admin_key:
        raise Failure("there is no admin key: set GATEWAY_ADMIN_KEY, or give --admin-key")
    headers = {"authorization": f"Bearer {admin_key}"}
    try:
        with httpx2.Client(timeout=_SECONDS, trust_env=False) as client:
            answer = client.get(f"{url.rstrip('/')}/admin/v1/{path}", headers=headers)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise Failure(
            f"the gateway at {url} does not answer ({error or type(error).__name__}): look at --url"
        ) from None
    if answer.status_code in (401, 403):
        raise Failure(f"the gateway at {url} refuses the admin key")
    try:
        rows = json.loads(answer.content[:_MAX_ANSWER])["data"]
    except (ValueError, KeyError, TypeError):
        rows = None
    if answer.status_code != 200 or not isinstance(rows, list):
        raise Failure(f"what answers at {url} (status {answer.status_code}) is not this gateway: look at --url")
    return rows
