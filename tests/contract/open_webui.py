"""Open WebUI 0.12.4's requests as they were seen on the wire: headers, bodies, and a gateway as it wants one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import wire
from tests.fakes import faults
from tests.fakes.ollama import OllamaServer
from tests.fakes.ollama_dialect import Model
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import CLIENT_KEY, Running, running_gateway
from tests.patience import LATE
from tests.wire import Reply

STEP = 0.02  # seconds between two tokens
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
ASK: list[Any] = [{"role": "user", "content": "What is the capital of Italy?"}]
TASK: list[Any] = [{"role": "user", "content": "### Task:\nGenerate a concise title\n### Output:\nJSON format"}]

#: aiohttp's, and a connection's key.
PLAIN = [
    ("authorization", f"Bearer {CLIENT_KEY}"), ("accept", "*/*"), ("accept-encoding", "gzip, deflate, br"),
    ("user-agent", "Python/3.11 aiohttp/3.14.5"),
]  # fmt: skip
#: With ENABLE_FORWARD_USER_INFO_HEADERS; a name is percent-encoded.
FORWARDED = [
    *PLAIN, ("x-openwebui-user-name", "Bob %C3%9Cn%C3%AF"), ("x-openwebui-user-id", "c0ffee00-4b1d-4c39-9d5e-1"),
    ("x-openwebui-user-email", "bob@example.com"), ("x-openwebui-user-role", "user"),
    ("x-openwebui-auth-type", "jwt"), ("x-openwebui-chat-id", "local:5f2c"),
]  # fmt: skip


def task(name: str) -> list[tuple[str, str]]:
    """With a connection's headers made from {{TASK}} and its kin; a person's own turn has empty ones."""
    return [*FORWARDED, ("x-openwebui-task", name), ("x-openwebui-message-id", ""), ("x-openwebui-groups", "")]


def builtin_tools(count: int = 36) -> list[dict[str, Any]]:
    """As many tools as each chat from the UI carries, and as large: 26 kB."""
    about = "Search the user's notes, chats and knowledge for what the question is about. " * 6
    return [
        {
            "type": "function",
            "function": {
                "name": f"builtin_{number}",
                "description": about,
                "parameters": {
                    "type": "object",
                    "properties": {
                        "query": {"type": "string", "description": "What to look for"},
                        "count": {"type": "integer", "description": "How many", "default": 5},
                    },
                    "required": ["query"],
                },
            },
        }
        for number in range(count)
    ]


@dataclass
class Stage:
    """A gateway as an Open WebUI would use it, and what stands behind it."""

    gateway: Running
    vendor: OpenAIUpstream
    engine: OpenAIUpstream
    ollama: OllamaServer

    async def chat(
        self, model: str, headers: list[tuple[str, str]] | None = None, path: str = "/v1/chat/completions", **body: Any
    ) -> Reply:
        """One turn, streamed unless it says otherwise."""
        whole = {"stream": True, "model": model, "messages": ASK, **body}
        return await wire.post(self.gateway.url, path, whole, FORWARDED if headers is None else headers)

    async def models(self, path: str = "/v1/models", headers: list[tuple[str, str]] | None = None) -> dict[str, Any]:
        """The list of models, by id."""
        reply = await wire.get(self.gateway.url, path, FORWARDED if headers is None else headers)
        assert reply.status == 200, reply
        assert reply.json.keys() == {"object", "data"}
        return {model["id"]: model for model in reply.json["data"]}


def sent(server: OpenAIUpstream | OllamaServer) -> Any:
    """The last body that a server got."""
    return server.ledger[-1].request.json


@asynccontextmanager
async def stage(folder: Path, **sections: Any) -> AsyncIterator[Stage]:
    """Vendor: "large" with prices, "small", and ones that go wrong; engine: "local", without a tool parser, and one
    place; Ollama: "qwen3:8b" and an embedding model."""
    vendor = OpenAIUpstream(
        {
            "large": Script(itl=STEP),
            "small": Script(pieces=('{"title":', ' "Capital"}')),
            "busy": Script(on_demand=True),
            "html": faults.refuse(502, HTML, [("x-powered-by", "nginx")]),
            "refuses": faults.refuse(400, b'{"error":{"message":"Too many tools.","type":"invalid_request_error"}}'),
            "cut": Script(itl=STEP, after=2, fault=faults.cut),
            "stalls": Script(after=2, fault=faults.hang),
            "hangs": faults.hang,
        }
    )
    engine = OpenAIUpstream({"local": Script(itl=STEP)}, cards={"local": {"max_model_len": 2048}})
    ollama = OllamaServer(
        {"qwen3:8b": Model(("completion", "tools", "thinking")), "nomic:latest": Model(("embedding",))}
    )
    async with vendor, engine, ollama:
        config = {"upstreams": upstreams(vendor, engine, ollama), "openwebui": {"tasks": {"*": "small"}}, **sections}
        async with running_gateway(config, folder) as gateway:
            running = Stage(gateway, vendor, engine, ollama)
            async with asyncio.timeout(LATE):
                while not {"large", "local", "qwen3:8b"} <= (await running.models()).keys():
                    await asyncio.sleep(0.01)  # until each upstream was asked for its models
            yield running


def upstreams(vendor: OpenAIUpstream, engine: OpenAIUpstream, ollama: OllamaServer) -> list[Mapping[str, Any]]:
    """Their part of the configuration."""
    large = {
        "name": "The Large One", "description": "Knows most things.", "tags": ["cloud"], "context_length": 128_000,
        "tools": True, "vision": True, "price": {"input": 2.0, "output": 8.0},
    }  # fmt: skip
    return [
        {
            "name": "vendor", "kind": "openai", "base_url": vendor.url, "overrides": {"large": large},
            "models": ["large", "small", "html", "refuses", "cut", "stalls", "hangs"],
        },
        {
            "name": "narrow", "kind": "openai", "base_url": vendor.url, "models": ["busy"],
            "concurrency": {"limit": 1, "queue": 2},
        },
        {"name": "engine", "kind": "vllm", "base_url": engine.url, "overrides": {"local": {"tools": False}}},
        {"name": "ollama", "kind": "ollama", "base_url": ollama.url, "options": {"num_ctx": 40_960}},
    ]  # fmt: skip
