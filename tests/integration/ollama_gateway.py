"""A gateway over an Ollama server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai

from tests.fakes.ollama import OllamaServer
from tests.gateway import Running, running_gateway
from tests.sdk import openai_client

ASK = [{"role": "user", "content": "Name five numbers."}]


@asynccontextmanager
async def ollama_gateway(
    folder: Path, server: OllamaServer, options: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """`options` are Ollama's in the configuration, `settings` further ones of the upstream."""
    upstream = {"name": "ollama", "kind": "ollama", "base_url": server.url, "options": dict(options or {}), **settings}
    async with running_gateway({"upstreams": [upstream]}, folder) as gateway:
        yield gateway


def sdk(gateway: Running) -> openai.AsyncOpenAI:
    """OpenAI's client."""
    return openai_client(gateway.v1, gateway.key)


def sent(server: OllamaServer) -> Any:
    """The body of the last request for inference that arrived."""
    return server.ledger[-1].request.json
