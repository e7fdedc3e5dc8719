"""S-17: whoever tries keys is told to wait, and nobody else is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gateway.domain import keys
from tests import http
from tests.gateway import CLIENT_KEY
from tests.integration.keyed import Keyed, bearer, keyed
from tests.patience import LATE


def guess(number: int) -> str:
    """A key as ours are, which nobody has made."""
    return keys.make(number.to_bytes(keys.RANDOM_BYTES)).reveal()


async def tried(gateway: Keyed, times: int, *, path: str = "/v1/models", **headers: str) -> list[int]:
    answers = [await gateway.client.get(path, headers={**bearer(guess(number)), **headers}) for number in range(times)]
    return [answer.status_code for answer in answers]


async def test_the_21st_wrong_key_of_a_minute_is_told_when_to_try_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with keyed(tmp_path) as gateway:
        assert await tried(gateway, 25) == [401] * 20 + [429] * 5
        told = await gateway.get(guess(1))
        assert told.json()["error"]["code"] == "too_many_wrong_keys"
        assert 1 <= int(told.headers["retry-after"]) <= 60
        assert told.headers["x-should-retry"] == "false"
        assert await gateway.gateway.metric("gateway_refused_total", reason="too_many_wrong_keys") == 6
    (line,) = [record for record in caplog.records if record.name == "gateway.auth"]
    assert line.__dict__["client"] == "127.0.0.1"


async def test_guesses_at_an_open_page_count_too(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        proxied = {"x-forwarded-for": "198.51.100.7"}  # to loopback the page says more without a key
        assert await tried(gateway, 20, path="/readyz", **proxied) == [200] * 20
        assert await tried(gateway, 1) == [429]


async def test_a_right_key_is_let_in_from_where_others_guess(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        made = await gateway.create("anna")
        await tried(gateway, 40)
        for key in (CLIENT_KEY, made["key"]):
            assert (await gateway.get(key)).status_code == 200
        assert (await gateway.client.get("/admin/v1/keys")).status_code == 200


async def test_guesses_of_every_kind_count_together_and_what_is_no_guess_does_not(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        expired = await gateway.create("old", expires=1)
        async with http.client(base_url=gateway.gateway.url) as client:
            for _ in range(30):
                assert (await client.get("/v1/models")).status_code == 401
                assert (await gateway.get(expired["key"])).json()["error"]["code"] == "api_key_expired"
            for number in range(5):
                assert (await gateway.get(guess(number))).status_code == 401
                assert (await gateway.get(guess(number)[:-1])).status_code == 401
                assert (await client.get("/v1/models", headers={"x-api-key": "nothing"})).status_code == 401
                assert (await client.get("/admin/v1/keys", headers=bearer(CLIENT_KEY))).status_code == 401
        assert await tried(gateway, 1, path="/admin/v1/keys") == [429]


async def test_a_header_neither_escapes_the_count_nor_blames_another(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        for number in range(20):
            claimed = {"x-forwarded-for": f"198.51.100.{number}", "x-real-ip": f"198.51.100.{number}"}
            assert (
                await gateway.client.get("/v1/models", headers={**bearer(guess(number)), **claimed})
            ).status_code == 401
        assert await tried(gateway, 1, **{"x-forwarded-for": "198.51.100.99"}) == [429]


async def test_behind_a_trusted_proxy_each_client_has_a_count_of_its_own(tmp_path: Path) -> None:
    async with keyed(tmp_path, server={"trusted_proxies": ["127.0.0.0/8"]}) as gateway:
        assert await tried(gateway, 21, **{"x-forwarded-for": "203.0.113.1"}) == [401] * 20 + [429]
        assert await tried(gateway, 1, **{"x-forwarded-for": "203.0.113.2"}) == [401]
        assert await tried(gateway, 1, **{"x-forwarded-for": "203.0.113.9, 203.0.113.1"}) == [429]


async def test_a_storm_of_guesses_holds_up_nobody(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:

        async def guessing() -> None:
            for number in range(250):
                await gateway.client.get("/v1/models", headers=bearer(guess(number)))

        storm = asyncio.gather(*(guessing() for _ in range(4)))
        worst = 0.0
        while not storm.done():
            began = time.monotonic()
            assert (await gateway.get(CLIENT_KEY)).status_code == 200
            worst = max(worst, time.monotonic() - began)
        await storm
        assert worst < LATE
