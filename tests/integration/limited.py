"""A gateway whose keys have limits and budgets, and who asks it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.gateway import ADMIN_KEY
from tests.patience import LATE
from tests.wire import Reply

KEY = "gw-0f4e2b9d71c84a35"
OTHER = "gw-71c84a350f4e2b9d"


def configuration(
    upstream: OpenAIUpstream,
    *,
    key: Mapping[str, Any] | None = None,
    keys: Iterable[Mapping[str, Any]] = (),
    defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    url: str = "memory://",
    timeout: float = LATE,
    replicas: int = 1,
) -> dict[str, Any]:
    """`key`: what the file says of the key KEY; `keys`: further ones.  `timeout` is long: how fast a machine is, is no
    promise."""
    return {
        "auth": {
            "admin_key": ADMIN_KEY,
            "keys": [{"name": "one", "key": KEY, **(key or {})}, {"name": "other", "key": OTHER}, *map(dict, keys)],
        },
        "limits": {"url": url, "timeout": timeout, "replicas": replicas, "defaults": dict(defaults or {})},
        "upstreams": [
            {
                "name": "up",
                "kind": "openai",
                "base_url": upstream.url,
                "models": list(upstream.models),
                "overrides": dict(overrides or {}),
                "concurrency": {"limit": 2000},
            }
        ],
    }


def body(model: str = "m", *, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more}


async def ask(
    url: str, *, key: str = KEY, headers: Iterable[tuple[str, str]] = (), within: float = 6 * LATE, **more: Any
) -> Reply:
    """One chat request; `more` goes into its body."""
    return await wire.post(
        url, "/v1/chat/completions", body(**more), (("authorization", f"Bearer {key}"), *headers), within
    )


async def statuses(asked: Iterable[asyncio.Task[Reply]]) -> Counter[int]:
    """How the requests were answered."""
    return Counter(reply.status for reply in await asyncio.gather(*asked))


async def running(upstream: OpenAIUpstream, count: int) -> None:
    """Returns when so many requests have reached the upstream."""
    async with asyncio.timeout(6 * LATE):
        while len(upstream.ledger) < count:
            await asyncio.sleep(0.005)  # they come over the network


async def answer(upstream: OpenAIUpstream) -> None:
    """Lets every stream that waits for a word end."""
    for attempt in upstream.ledger:
        for _ in range(100):
            attempt.wanted.release()
