"""What the contract is tested on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from gateway.backends import BACKENDS
from tests.contract.places import Place, fake_place
from tests.contract.sdk import Sdk
from tests.real import BASE, LLAMA

# Not collected at all without a server: a test that is skipped on every machine but one would look like a promise kept.
collect_ignore = [] if os.environ.get("OLLAMA_URL") else ["test_ollama_server.py"]

ENGINE = (pytest.mark.engine, pytest.mark.timeout(420))
KINDS = sorted(BACKENDS)
REAL = [pytest.param("real vllm", marks=ENGINE), pytest.param("real llama.cpp", marks=ENGINE)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The sync client is tested on vLLM and on the fake of each dialect, not on a second engine of one of them."""
    surplus = [item for item in items if "real llama.cpp-sync" in item.name]
    config.hook.pytest_deselected(items=surplus)
    items[:] = [item for item in items if item not in surplus]


async def _place(kind: str, request: pytest.FixtureRequest, folder: pytest.TempPathFactory) -> AsyncIterator[Place]:
    if not kind.startswith("real"):
        async with fake_place(kind, folder.mktemp(kind)) as place:
            yield place
        return
    gateway = request.getfixturevalue("real").gateway
    if kind == "real vllm":
        yield Place("vllm", gateway, BASE, None)
    else:
        yield Place("openai", gateway, LLAMA, None, frozenset({"tools"}))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[*KINDS, *REAL])
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """A gateway over a server of each kind, and over the real engines."""
    async for found in _place(request.param, request, tmp_path_factory):
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def fake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """A gateway over a scripted server of each kind, whose `server` tells what arrived."""
    async for found in _place(request.param, request, tmp_path_factory):
        yield found


@pytest.fixture(params=["async", "sync"])
def sdk_of(request: pytest.FixtureRequest) -> type[openai.OpenAI] | type[openai.AsyncOpenAI]:
    """Both clients."""
    return openai.AsyncOpenAI if request.param == "async" else openai.OpenAI


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(place: Place, sdk_of: type[openai.OpenAI] | type[openai.AsyncOpenAI]) -> AsyncIterator[Sdk]:
    """OpenAI's client on a place."""
    async with Sdk.open(sdk_of, place.gateway) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def fake_sdk(fake: Place, sdk_of: type[openai.OpenAI] | type[openai.AsyncOpenAI]) -> AsyncIterator[Sdk]:
    """OpenAI's client on a scripted place."""
    async with Sdk.open(sdk_of, fake.gateway) as made:
        yield made
