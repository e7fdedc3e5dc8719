"""Which models exist for a key: the list, the look-up by name and the llama.cpp list agree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.administration import CHAT, PIRATES, Administered, administered

VERSION = "0123456789ab"
NAMES = ("smollm2", "pirate", "pirate-de", "lawyer", "Pirate")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Administered]:
    async with administered(tmp_path) as running:
        running.offer(*NAMES, f"pirate@{VERSION}", f"lawyer@{VERSION}")
        yield running


async def listed(gateway: Administered, key: str, path: str = "/v1/models") -> list[str]:
    async with gateway.client(key) as client:
        return [model["id"] for model in (await client.get(path)).json()["data"]]


async def test_a_key_is_shown_what_it_may_use_in_the_order_of_the_list(gateway: Administered) -> None:
    assert (await listed(gateway, CHAT))[:5] == list(NAMES)
    assert await listed(gateway, PIRATES) == ["pirate", "pirate-de", f"pirate@{VERSION}"]
    assert await listed(gateway, PIRATES, "/models") == await listed(gateway, PIRATES)


async def test_a_model_of_others_is_a_model_that_does_not_exist(gateway: Administered) -> None:
    async with gateway.client(PIRATES) as client:
        assert (await client.get(f"/v1/models/pirate@{VERSION}")).json()["id"] == f"pirate@{VERSION}"
        missing = await client.get("/v1/models/nothing")
        for name in ("lawyer", f"lawyer@{VERSION}", "smollm2", "Pirate"):
            answer = await client.get(f"/v1/models/{name}")
            assert answer.status_code == missing.status_code == 404
            assert answer.text == missing.text.replace("nothing", name)
            assert answer.headers.keys() == missing.headers.keys()
