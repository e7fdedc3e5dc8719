"""Ollama's failures, as clients hear of them, and when another target is tried."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes import faults
from tests.fakes.ollama import OllamaServer, Pace, error_line, refusal
from tests.fakes.ollama_dialect import Model
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.fakes.upstream import Behaviour
from tests.gateway import running_gateway
from tests.integration.ollama_gateway import ASK, ollama_gateway, sdk

NO_JSON = faults.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nnojson")
PNG = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    models = {"m:1b": Model(), "eyes:1b": Model(("completion", "vision")), "vectors:1b": Model(("embedding",))}
    async with OllamaServer(models) as running:
        yield running


@pytest.fixture
async def client(server: OllamaServer, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with ollama_gateway(tmp_path, server) as gateway, sdk(gateway) as made:
        yield made


@pytest.mark.parametrize(
    ("behaviour", "kind", "code"),
    [
        (refusal(400, "invalid format"), openai.BadRequestError, "upstream_refused"),
        (refusal(401, "unauthorized"), openai.InternalServerError, "upstream_status"),
        (refusal(403, "ollama cloud is disabled"), openai.InternalServerError, "upstream_status"),
        (refusal(404, "model 'm:1b' not found"), openai.NotFoundError, "model_not_found"),
        (refusal(429, "too many requests"), openai.RateLimitError, "rate_limit_exceeded"),
        (refusal(500, "model runner has unexpectedly stopped"), openai.InternalServerError, "upstream_status"),
        (refusal(503, "server busy, please try again."), openai.InternalServerError, "upstream_status"),
        (faults.reset, openai.InternalServerError, None),
        (NO_JSON, openai.InternalServerError, "upstream_protocol"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_each_failure_has_its_class(
    client: openai.AsyncOpenAI, server: OllamaServer, behaviour: Behaviour, kind: Any, code: str | None, stream: bool
) -> None:
    server.paces["m:1b"] = Pace(instead=behaviour)
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model="m:1b", messages=ASK, stream=stream)
    assert type(caught.value) is kind, caught.value
    assert code is None or caught.value.code == code
    assert "signin" not in caught.value.message


async def test_an_error_of_the_server_below_is_unpacked(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    inner = '{"error":{"code":400,"message":"Failed to parse grammar","type":"invalid_request_error"}}'
    server.paces["m:1b"] = Pace(instead=refusal(400, inner))
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="m:1b", messages=ASK)
    assert caught.value.body == {
        "message": "Failed to parse grammar", "type": "invalid_request_error", "param": None,
        "code": "upstream_refused",
    }  # fmt: skip


async def test_what_a_model_cannot_do_is_the_clients_to_know(client: openai.AsyncOpenAI) -> None:
    seen = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]
    for asked, lacking in (
        (client.chat.completions.create(model="m:1b", messages=seen), "image input"),
        (client.chat.completions.create(model="vectors:1b", messages=ASK), "chat"),
        (client.completions.create(model="vectors:1b", prompt="a"), "generate"),
        (client.completions.create(model="m:1b", prompt="a", suffix="b"), "insert"),
        (client.embeddings.create(model="m:1b", input="a"), "embeddings"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await asked
        model = "vectors:1b" if lacking in ("chat", "generate") else "m:1b"
        assert caught.value.body == {
            "message": f"The model '{model}' does not support {lacking}.",
            "type": "invalid_request_error", "param": None, "code": "unsupported_value",
        }  # fmt: skip


@pytest.mark.parametrize("after", [0, 3])
async def test_an_error_in_the_middle_of_a_stream_ends_it(
    client: openai.AsyncOpenAI, server: OllamaServer, after: int
) -> None:
    server.paces["m:1b"] = Pace(after=after, fault=error_line("CUDA error at /build/ggml/src/cuda.cu: 0x7f00dead"))
    text = ""
    with pytest.raises(openai.APIError) as caught:  # noqa: PT012
        async for chunk in await client.chat.completions.create(model="m:1b", messages=ASK, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "One two three"[: 0 if not after else None]
    assert "while it was answering" in caught.value.message
    assert "cuda.cu" not in str(caught.value.body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["gone:1b", "busy:1b", "broken:1b"])
async def test_another_target_answers_for_one_that_cannot(tmp_path: Path, name: str, stream: bool) -> None:
    """A model that was removed after it was listed is no mistake of the client's."""
    failing = {
        "gone:1b": refusal(404, "model 'gone:1b' not found"),
        "busy:1b": refusal(503, "server busy, please try again.  maximum pending requests exceeded"),
        "broken:1b": refusal(500, "model runner has unexpectedly stopped"),
    }
    paces = {model: Pace(instead=behaviour) for model, behaviour in failing.items()}
    async with OllamaServer(dict.fromkeys(failing, Model()), paces=paces) as server, OpenAIUpstream() as other:
        upstreams = [
            {"name": "ollama", "kind": "ollama", "base_url": server.url},
            {"name": "other", "kind": "openai", "base_url": other.url},
        ]
        targets = [{"upstream": "ollama", "model": name}, {"upstream": "other", "model": "m"}]
        models = [{"id": "either", "targets": targets}]
        async with (
            running_gateway({"upstreams": upstreams, "models": models}, tmp_path) as gateway,
            sdk(gateway) as client,
        ):
            raw = await client.chat.completions.with_raw_response.create(model="either", messages=ASK, stream=stream)
            assert raw.headers["x-gateway-upstream"] == "other"
            if stream:
                assert [chunk.model async for chunk in raw.parse()]
        assert len(server.ledger) == len(other.ledger) == 1


async def test_the_other_way_round_ollama_answers_for_a_vendor(tmp_path: Path) -> None:
    async with OllamaServer({"m:1b": Model()}) as server, OpenAIUpstream({"m": faults.refuse(500)}) as other:
        upstreams = [
            {"name": "other", "kind": "openai", "base_url": other.url},
            {"name": "ollama", "kind": "ollama", "base_url": server.url},
        ]
        targets = [{"upstream": "other", "model": "m"}, {"upstream": "ollama", "model": "m:1b"}]
        config = {"upstreams": upstreams, "models": [{"id": "either", "targets": targets}]}
        async with running_gateway(config, tmp_path) as gateway, sdk(gateway) as client:
            answer = await client.chat.completions.create(model="either", messages=ASK)
    assert (answer.model, answer.choices[0].message.content) == ("either", "One two three four five")
