"""OpenAI's official client, sync and async, behind one face: what a test says of the one holds for the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import reduce
from typing import Any, Self

import openai

from tests.gateway import Running


class Sdk:
    """A client that tries nothing twice.  `what` is a method's path, as in "chat.completions.create"."""

    def __init__(self, client: openai.OpenAI | openai.AsyncOpenAI) -> None:
        self.client = client

    @classmethod
    @asynccontextmanager
    async def open(
        cls, kind: type[openai.OpenAI] | type[openai.AsyncOpenAI], gateway: Running, **settings: Any
    ) -> AsyncIterator[Self]:
        made = kind(**{"base_url": gateway.v1, "api_key": gateway.key, "max_retries": 0, **settings})
        try:
            yield cls(made)
        finally:
            if isinstance(made, openai.AsyncOpenAI):
                await made.close()
            else:
                made.close()

    async def ask(self, what: str, *given: Any, **more: Any) -> Any:
        """Calls the method; the gateway runs in this loop, so that the sync client gets a thread."""
        method = reduce(getattr, what.split("."), self.client)
        if isinstance(self.client, openai.AsyncOpenAI):
            return await method(*given, **more)
        return await asyncio.to_thread(method, *given, **more)

    async def stream(self, what: str, into: list[Any] | None = None, **more: Any) -> list[Any]:
        """All chunks, in order; `into` has them also when the stream breaks."""
        chunks: list[Any] = [] if into is None else into
        stream = await self.ask(what, stream=True, **more)
        if isinstance(stream, openai.AsyncStream):
            async for chunk in stream:
                chunks.append(chunk)  # noqa: PERF401 - what came before an error is kept
        else:
            await asyncio.to_thread(_drain, stream, chunks)
        return chunks

    async def helper(self, **more: Any) -> tuple[list[str], Any]:
        """The SDK's own accumulation of a stream: the deltas of the content, and the final completion."""
        if isinstance(self.client, openai.AsyncOpenAI):
            async with self.client.chat.completions.stream(**more) as events:
                deltas = [event.delta async for event in events if event.type == "content.delta"]
                return deltas, await events.get_final_completion()
        return await asyncio.to_thread(self._helper, **more)

    def _helper(self, **more: Any) -> tuple[list[str], Any]:
        assert isinstance(self.client, openai.OpenAI)
        with self.client.chat.completions.stream(**more) as events:
            deltas = [event.delta for event in events if event.type == "content.delta"]
            return deltas, events.get_final_completion()


def _drain(stream: Any, chunks: list[Any]) -> None:
    for chunk in stream:
        chunks.append(chunk)  # noqa: PERF402


def text_of(chunks: list[Any], index: int = 0) -> str:
    """What one choice of a stream said."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)
