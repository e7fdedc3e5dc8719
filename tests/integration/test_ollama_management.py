"""Nobody manages Ollama's models through the gateway: not by its paths, not by tricks with them, not by a request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests import wire
from tests.fakes.ollama import MANAGEMENT, OllamaServer
from tests.fakes.ollama_dialect import Model
from tests.gateway import Running
from tests.integration.ollama_gateway import ASK, ollama_gateway

#: All that Ollama serves (server/routes.go, GenerateRoutes), its `/v1` apart, which the gateway has its own of.
ROUTES = (
    *MANAGEMENT,
    ("GET", "/"), ("HEAD", "/"), ("GET", "/api/version"), ("GET", "/api/status"), ("GET", "/api/tags"),
    ("GET", "/api/ps"), ("POST", "/api/show"), ("POST", "/api/generate"), ("POST", "/api/chat"), ("POST", "/api/embed"),
    ("POST", "/api/embeddings"), ("GET", "/api/experimental/model-recommendations"), ("POST", "/v1/messages"),
    ("POST", "/v1/responses"), ("POST", "/v1/audio/transcriptions"),
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ASKED = {"/api/tags", "/api/show", "/api/chat", "/api/generate", "/api/embed"}


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    async with OllamaServer({"m:1b": Model(), "vectors:1b": Model(("embedding",))}, terse=True) as running:
        yield running


@pytest.fixture
async def gateway(server: OllamaServer, tmp_path: Path) -> AsyncIterator[Running]:
    async with ollama_gateway(tmp_path, server) as running:
        yield running


def disguises(path: str) -> list[str]:
    """The path as it is, and as those write it who hope that somebody puts it together again."""
    tail = path.lstrip("/")
    return [
        path, f"/{path}", f"/v1{path}", f"/v1/..{path}", f"/v1/models/..%2f..%2f{quote(tail, safe='')}",
        f"/v1/models/../..{path}", f"/v1/%2e%2e{path}", f"{path}/", f"{path}?model=m", f"/ollama{path}",
        f"/v1/models/{quote(tail, safe='')}",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["client", "admin", "none"])
async def test_no_path_of_ollamas_is_reachable(gateway: Running, server: OllamaServer, key: str) -> None:
    auth = {"client": gateway.headers, "admin": gateway.admin_headers, "none": {}}[key]
    headers = [*auth.items(), ("content-type", "application/json")]
    before = len(server.requests)
    answered = []
    for _, path in ROUTES:
        for disguise in disguises(path):
            for method in METHODS:
                async with wire.connected(gateway.url) as client:
                    await client.request(method, disguise, b'{"model": "m:1b", "name": "m:1b"}', headers)
                    status, _ = await client.head()
                    if status < 400:
                        answered.append((method, disguise, status))
    assert not answered
    assert not server.touched
    assert len(server.requests) == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/chat/completions", {"messages": [], "keep_alive": 0}),
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": "", "keep_alive": 0}),
    ],
)
async def test_no_request_unloads_a_model(gateway: Running, server: OllamaServer, path: str, body: object) -> None:
    auth = list(gateway.headers.items())
    asked = await wire.post(gateway.url, "/v1/chat/completions", {"model": "m:1b", "messages": ASK}, auth)
    assert asked.status == 200
    assert isinstance(body, dict)
    reply = await wire.post(gateway.url, path, {"model": "m:1b", **body}, auth)
    assert reply.status == 400
    assert list(server.loaded) == ["m:1b"]
    assert len(server.ledger) == 1


async def test_the_gateway_itself_asks_nothing_but_what_it_must(gateway: Running, server: OllamaServer) -> None:
    auth = list(gateway.headers.items())
    for path, model, body in (
        ("/v1/chat/completions", "m:1b", {"messages": ASK}),
        ("/v1/completions", "m:1b", {"prompt": "Count"}),
        ("/v1/embeddings", "vectors:1b", {"input": "text"}),
    ):
        assert (await wire.post(gateway.url, path, {"model": model, **body}, auth)).status == 200
    assert {request.path for request in server.requests} == ASKED
    assert not server.touched
