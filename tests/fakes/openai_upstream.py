"""A real server on loopback that speaks OpenAI's dialect and goes wrong on demand, byte by byte.

Each model has a behaviour: a coroutine function over an `Exchange`.  `Script` is the fair one, with knobs and an
optional fault after so many tokens; tests/fakes/faults.py has the faults; a test may write its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.fakes import openai_dialect as dialect
from tests.fakes.openai_dialect import PIECES, Rejected, UsageRule
from tests.fakes.upstream import Attempt, Behaviour, Exchange, Headers, Request, Upstream

__all__ = ["Attempt", "Behaviour", "Exchange", "Headers", "OpenAIUpstream", "Request", "Script"]

_ENDPOINTS = {"/chat/completions": "chat", "/completions": "completions", "/embeddings": "embeddings"}


@dataclass(frozen=True, slots=True)
class Script:
    """A fair OpenAI model, until its `fault` comes after `after` content tokens (before the answer's first byte when
    the answer comes whole).

    `ttft`, `itl`: seconds before the status line and before each token.  `on_demand`: each token of a stream waits
    until the test releases the attempt's `wanted`.  `newline` ends each line of the stream; `prelude` is put before
    each event's data; `slices`: bytes a chunk (0: an event a chunk).
    """

    pieces: tuple[str, ...] = PIECES
    ttft: float = 0.0
    itl: float = 0.0
    on_demand: bool = False
    usage: UsageRule = field(default=lambda usage: usage)
    newline: bytes = b"\n"
    prelude: bytes = b""
    slices: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    after: int = 0
    fault: Behaviour | None = None

    async def __call__(self, exchange: Exchange) -> None:
        endpoint = _ENDPOINTS[exchange.request.path.removeprefix("/v1")]
        body = exchange.request.json
        if self.ttft:
            await asyncio.sleep(self.ttft)
        if endpoint == "embeddings":
            await exchange.json(json.dumps(dialect.embeddings(body)).encode(), headers=self.headers)
            return
        answerer = dialect.Answerer(body, endpoint, self.pieces, self.usage, id=f"chatcmpl-{exchange.attempt.number}")
        if not body.get("stream"):
            await self._whole(exchange, answerer)
            return
        await exchange.open_stream(self.headers)
        for event in answerer.chunks():
            if event.tokens:
                if self.fault and exchange.attempt.tokens >= self.after:
                    await self.fault(exchange)
                    return
                if self.on_demand:
                    await exchange.attempt.wanted.acquire()
                if self.itl:
                    await asyncio.sleep(self.itl)
            await self.event(exchange, json.dumps(event.data, ensure_ascii=False).encode())
            exchange.attempt.tokens += event.tokens
        if self.fault:
            await self.fault(exchange)
            return
        await self.event(exchange, b"[DONE]")
        await exchange.end_stream()

    async def _whole(self, exchange: Exchange, answerer: dialect.Answerer) -> None:
        if self.itl:
            await asyncio.sleep(self.itl * len(answerer.generation().pieces))
        if self.fault:
            await self.fault(exchange)
            return
        answer = answerer.whole()
        exchange.attempt.tokens = len(answerer.generation().pieces)
        await exchange.json(json.dumps(answer, ensure_ascii=False).encode(), headers=self.headers)

    async def event(self, exchange: Exchange, data: bytes) -> None:
        framed = self.prelude + b"data: " + data + self.newline * 2
        step = self.slices or len(framed)
        for start in range(0, len(framed), step):
            await exchange.chunk(framed[start : start + step])
            if self.slices:
                await asyncio.sleep(0)


class OpenAIUpstream(Upstream):
    """The server.  `models`: name → behaviour; `cards`: further keys of a model's entry in the list.

    With an `api_key`, every other key is refused as OpenAI does.
    """

    def __init__(
        self,
        models: Mapping[str, Behaviour] | None = None,
        *,
        api_key: str = "",
        cards: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.models: dict[str, Behaviour] = dict(models if models is not None else {"m": Script()})
        self.cards = dict(cards or {})
        self.api_key = api_key

    @property
    def url(self) -> str:
        """The base URL that goes into a configuration."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def answer(self, exchange: Exchange) -> None:
        try:
            behaviour = await self._behaviour(exchange)
        except Rejected as rejection:
            await exchange.json(rejection.body, rejection.status)
        else:
            await behaviour(exchange)

    async def _behaviour(self, exchange: Exchange) -> Behaviour:
        request, path = exchange.request, exchange.request.path.removeprefix("/v1")
        self._authorise(request)
        if request.method == "GET" and path.startswith("/models"):
            cards = self._models(path.removeprefix("/models"))
            return lambda exchange: exchange.json(cards)
        if path not in _ENDPOINTS or request.method != "POST":
            raise Rejected(
                404, f"Invalid URL ({request.method} {request.path})", type="invalid_request_error", code=None
            )
        await self.enter(exchange.attempt)
        body = dialect.check(_ENDPOINTS[path], _parsed(request.body), tuple(self.models))
        return self.models[body["model"]]

    def _authorise(self, request: Request) -> None:
        if self.api_key and request.header("authorization") != f"Bearer {self.api_key}":
            message = "Incorrect API key provided. You can find your API key in your account's settings."
            raise Rejected(401, message, type="invalid_request_error", code="invalid_api_key")

    def _models(self, wanted: str) -> bytes:
        cards = {
            name: {"id": name, "object": "model", "created": dialect.CREATED, "owned_by": "fake"}
            | dict(self.cards.get(name, {}))
            for name in self.models
        }
        if not wanted:
            return json.dumps({"object": "list", "data": list(cards.values())}).encode()
        if (card := cards.get(wanted.removeprefix("/"))) is None:
            raise Rejected(404, "The model does not exist", type="invalid_request_error", code="model_not_found")
        return json.dumps(card).encode()


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None
