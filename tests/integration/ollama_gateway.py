"""A gateway over an Ollama server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai

from tests.fakes.ollama import OllamaServer
from tests.gateway import Running, running_gateway

ASK = [{"role": "user", "content": "Name five numbers."}]


@asynccontextmanager
async def ollama_gateway(
    folder: Path, server: OllamaServer, options: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """`options` are Ollama's in the configuration, `settings` further ones of the upstream."""
    upstream = {"name": "ollama", "kind": "ollama", "base_url": server.url, "options": dict(options or {}), **settings}
    async with running_gateway({"upstreams": [upstream]}, folder) as gateway:
        yield gateway


@asynccontextmanager
async def sdk(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client, which tries nothing twice."""
    async with openai.AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0) as client:
        yield client


def sent(server: OllamaServer) -> Any:
    """The body of the last request for inference that arrived."""
    return server.ledger[-1].request.json
