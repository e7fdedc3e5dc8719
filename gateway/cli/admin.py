"""Talks to a running gateway's administration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

import httpx2

from gateway.cli.output import Failure

_SECONDS = 10.0
_WAITING = 300.0  # for what is answered when it is done
_MAX_ANSWER = 16 << 20


class Absent(Failure):
    """The gateway has nothing of that name."""


class Admin:
    """The administration of the gateway at `url`; a context.  All raise Failure, with the gateway's own sentence."""

    def __init__(self, url: str, key: str | None) -> None:
        if not key:
            raise Failure("there is no admin key: set GATEWAY_ADMIN_KEY, or give --admin-key")
        self._url = url
        self._client = httpx2.Client(
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(_SECONDS, read=_WAITING),
            trust_env=False,  # the key goes to the gateway alone, whatever proxies there are
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def rows(self, path: str) -> list[dict[str, Any]]:
        """The rows of a list below `/admin/v1/`."""
        rows = self.call("GET", path).get("data")
        if not isinstance(rows, list):
            raise self._stranger(200)
        return rows

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The object that a page below `/admin/v1/` answers with.  Raises Absent where there is none."""
        return self._send(method, path, json=body)

    def upload(self, path: str, pieces: Iterable[bytes], size: int, query: Mapping[str, str]) -> dict[str, Any]:
        """As `call`, for a PUT of this many bytes."""
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        return self._send("PUT", path, content=pieces, headers=headers, params=query)

    def _send(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, f"{self._url.rstrip('/')}/admin/v1/{path}", **request)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise Failure(
                f"the gateway at {self._url} does not answer ({error or type(error).__name__}): look at --url"
            ) from None
        if answer.status_code in (401, 403):
            raise Failure(f"the gateway at {self._url} refuses the admin key")
        try:
            page = json.loads(answer.content[:_MAX_ANSWER])
            if answer.is_success and isinstance(page, dict):
                return page
            message = str(page["error"]["message"])
        except (ValueError, KeyError, TypeError):
            raise self._stranger(answer.status_code) from None
        raise (Absent if answer.status_code == 404 else Failure)(message)

    def _stranger(self, status: int) -> Failure:
        return Failure(f"what answers at {self._url} (status {status}) is not this gateway: look at --url")


def fetch(url: str, key: str | None, path: str) -> list[dict[str, Any]]:
    """The rows of one list.  Raises Failure."""
    with Admin(url, key) as admin:
        return admin.rows(path)
