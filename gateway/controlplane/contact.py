"""The control plane's own requests to an upstream: few, short and bounded, apart from the serving path."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Self

import httpx2

from gateway.domain.snapshot import Upstream

_MAX_ANSWER = 8 << 20  # bytes; the longest model list that is known (OpenRouter's) has about 1 MiB
_CONNECT = 3.0  # seconds
_KEEP_ALIVE = 1.0  # seconds: a connection serves the requests of one round and is never found dead in the next


class Unanswered(Exception):
    """No whole answer came.  The text says why, for the operator: it may name addresses, never credentials."""


class Slow(Unanswered):
    """It took the connection and did not answer in time, which a busy server does as well as a dead one."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, whatever its status."""

    status: int
    body: bytes


class Contact:
    """One upstream's HTTP client, for its own origin only: no redirect, no proxy from the environment, no cookie kept
    from another.  Use it as an async context manager, for one request at a time."""

    def __init__(self, upstream: Upstream) -> None:
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self._origin = f"{upstream.scheme}://{host}:{upstream.port}"
        self._upstream = upstream
        self._client: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def request(self, method: str, path: str, body: bytes | None = None, *, within: float = 5.0) -> Reply:
        """Sends one request to `path` (query included) below the origin; `within` bounds the whole of it, in seconds.

        Raises Unanswered, of which Slow is one.
        """
        if self._client is None:
            self._client = await self._open()
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            async with (
                asyncio.timeout(within),
                self._client.stream(method, self._origin + path, content=body, headers=headers) as response,
            ):
                parts: list[bytes] = []
                size = 0
                async for part in response.aiter_raw():
                    size += len(part)
                    if size > _MAX_ANSWER:
                        raise Unanswered(f"{self._origin} answers with more than {_MAX_ANSWER >> 20} MiB")
                    parts.append(part)
                return Reply(response.status_code, b"".join(parts))
        except TimeoutError:
            raise Slow(f"{self._origin} did not answer within {within:g} s") from None
        except httpx2.ConnectTimeout:
            raise Unanswered(f"{self._origin} took no connection within {_CONNECT:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unanswered(f"{self._origin}: {error or type(error).__name__}") from error

    async def _open(self) -> httpx2.AsyncClient:
        if self._upstream.scheme == "https":
            tls = await asyncio.to_thread(
                _tls, self._upstream
            )  # reads all authorities; requests should not wait for it
        else:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and cheaper than the client's own default
        return httpx2.AsyncClient(
            # Unpacking could blow a small answer up without bound, so none is asked for.
            headers={
                "accept-encoding": "identity",
                **{name: value.reveal() for name, value in self._upstream.headers},
            },
            verify=tls,
            timeout=httpx2.Timeout(None, connect=_CONNECT),  # the rest is bounded as a whole
            limits=httpx2.Limits(max_connections=4, keepalive_expiry=_KEEP_ALIVE),
            follow_redirects=False,
            trust_env=False,
        )


def _tls(upstream: Upstream) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=upstream.ca_file)
    except OSError as error:
        raise Unanswered(f"ca_file {upstream.ca_file} cannot be used: {error}") from error
