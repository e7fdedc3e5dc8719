"""A gateway with several keys over a recording upstream, and what it says of who asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import ADMIN_KEY, CLIENT_KEY, running_gateway
from tests.patience import LATE
from tests.people import SECRET, Header
from tests.wire import Reply

OTHER_KEY = "sk-other-77ab0e1944c2d0e5"
SIGNED = {"openwebui": {"jwt_secret": SECRET}}
TRUSTED = {"trusted_headers": True}
MODELS = ("base", "support-bot", "lab")


class _Ear(logging.Handler):
    """Hears what is logged of requests."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.heard.set()


class Peopled:
    """What runs.  `upstream` keeps the bodies that it got."""

    def __init__(self, url: str, upstream: OpenAIUpstream, ear: _Ear) -> None:
        self.url = url
        self.upstream = upstream
        self._ear = ear

    async def ask(self, *headers: Header, model: str = "base", key: str = CLIENT_KEY, **more: Any) -> Reply:
        """A chat request."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
        return await self.post("/v1/chat/completions", body, headers, key)

    async def post(self, path: str, body: Any, headers: Iterable[Header] = (), key: str = CLIENT_KEY) -> Reply:
        who = ("authorization", f"Bearer {key}")
        return await wire.post(self.url, path, body, (who, *headers), 3 * LATE)

    async def models(self, *headers: Header, key: str = CLIENT_KEY) -> list[str]:
        """The list of models that the key is shown."""
        reply = await wire.get(self.url, "/v1/models", [("authorization", f"Bearer {key}"), *headers])
        assert reply.status == 200, reply
        return [model["id"] for model in reply.json["data"]]

    async def logged(self, reply: Reply) -> dict[str, Any]:
        """The request's line in the access log."""
        async with asyncio.timeout(LATE):
            while True:
                for record in self._ear.records:
                    if vars(record).get("request_id") == reply.header("x-request-id"):
                        return vars(record)
                self._ear.heard.clear()
                await self._ear.heard.wait()

    def said(self) -> str:
        """All that the access log holds."""
        return " ".join(repr(vars(record)) for record in self._ear.records)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What the upstream was sent."""
        return [attempt.request.json for attempt in self.upstream.ledger]


@asynccontextmanager
async def peopled(
    folder: Path, users: dict[str, Any], *, kind: str = "vllm", keys: Iterable[dict[str, Any]] = ({},), **more: Any
) -> AsyncIterator[Peopled]:
    """A gateway with this section `users`.  `keys`: settings of the first and, if there is one, the other key; `more`:
    further sections, `upstream` for settings of the upstream."""
    upstream_settings = more.pop("upstream", {})
    names = (("tester", CLIENT_KEY), ("other", OTHER_KEY))
    auth = {
        "admin_key": ADMIN_KEY,
        "keys": [{"name": name, "key": key, **each} for (name, key), each in zip(names, keys, strict=False)],
    }
    async with OpenAIUpstream({name: Script() for name in MODELS}) as upstream:
        one = {"name": "one", "kind": kind, "base_url": upstream.url, "models": list(MODELS), "poll_interval": 3600}
        config = {"auth": auth, "users": users, "upstreams": [{**one, **upstream_settings}], **more}
        ear, log = _Ear(), logging.getLogger("gateway.access")
        level = log.level
        log.addHandler(ear)
        log.setLevel(logging.INFO)
        try:
            async with running_gateway(config, _made(folder)) as gateway:
                yield Peopled(gateway.url, upstream, ear)
        finally:
            log.removeHandler(ear)
            log.setLevel(level)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
