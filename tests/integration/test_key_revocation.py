"""S-7: a revoked key is over at once, also for what runs; and nobody slips through in the moment of it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import pytest

from tests import wire
from tests.integration.keyed import ENDLESS, Keyed, chat, keyed, rest_of
from tests.tiers import repeated

PROMISED = 1.0  # seconds


@pytest.fixture
async def gateway(tmp_path: Path):
    async with keyed(tmp_path, {"m": ENDLESS}, server={"drain_timeout": 0.1}) as running:
        yield running


def failed_with(reply: wire.Reply) -> str:
    message: str = reply.failure["message"]
    return message


async def test_a_running_stream_ends_with_a_sentence_and_without_done(gateway: Keyed) -> None:
    made, other = await gateway.create("anna"), await gateway.create("bert")
    async with gateway.streaming(made["key"]) as stream, gateway.streaming(other["key"]) as untouched:
        began = time.monotonic()
        await gateway.revoke(made["id"])
        reply = await rest_of(stream)
        assert time.monotonic() - began < PROMISED
        assert reply.failure["code"] == "api_key_revoked"
        assert failed_with(reply) == "The API key was revoked."
        assert await untouched.chunk()
    (first, _) = gateway.upstream.ledger
    async with asyncio.timeout(PROMISED):
        await first.over.wait()


async def test_a_whole_answer_that_is_waited_for_ends_too(gateway: Keyed) -> None:
    made = await gateway.create("anna")
    asked = asyncio.create_task(gateway.post(made["key"], chat(stream=False)))
    while not gateway.upstream.ledger:
        await asyncio.sleep(0.005)
    await gateway.revoke(made["id"])
    answer = await asked
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "api_key_revoked")


async def test_a_body_that_is_still_being_sent_is_not_waited_for(gateway: Keyed) -> None:
    made = await gateway.create("anna")
    async with wire.connected(gateway.gateway.url) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made['key']}\r\n"
        await client.send(f"{head}content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{".encode())
        while not gateway.gateway.inside.pipeline._live:  # type: ignore[union-attr]
            await asyncio.sleep(0.005)
        await gateway.revoke(made["id"])
        status, _ = await client.head()
    assert status == 401


async def test_every_stream_of_a_key_ends_and_none_of_another(gateway: Keyed) -> None:
    keys = [await gateway.create(f"k{number}") for number in range(4)]
    async with AsyncExitStack() as stack:
        streams = [(key, await stack.enter_async_context(gateway.streaming(key["key"]))) for key in keys * 5]
        await gateway.revoke(keys[0]["id"])
        ended = await asyncio.gather(*(rest_of(stream) for key, stream in streams if key is keys[0]))
        assert [failed_with(reply) for reply in ended] == ["The API key was revoked."] * 5
        for key, stream in streams:
            if key is not keys[0]:
                assert await stream.chunk()


async def test_an_expiry_in_the_past_ends_what_runs_and_one_to_come_does_not(gateway: Keyed) -> None:
    made = await gateway.create("anna")
    async with gateway.streaming(made["key"]) as stream:
        await gateway.call("PATCH", "keys/anna", {"expires": int(time.time()) + 60, "owner": "x"})
        assert await stream.chunk()
        await gateway.call("PATCH", "keys/anna", {"expires": int(time.time()) - 1})
        assert failed_with(await rest_of(stream)) == "The API key was revoked."


async def test_a_rotation_ends_what_runs_with_the_secret_before_unless_there_is_a_grace(gateway: Keyed) -> None:
    made = await gateway.create("anna")
    async with gateway.streaming(made["key"]) as before:
        again = await gateway.rotate("anna", grace=60)
        assert await before.chunk()
        async with gateway.streaming(again["key"]) as after:
            await gateway.rotate("anna", grace=60)
            assert failed_with(await rest_of(before)) == "The API key was revoked."
            assert await after.chunk()
            await gateway.rotate("anna")
            assert failed_with(await rest_of(after)) == "The API key was revoked."


async def test_an_administrator_who_leaves_has_revoked_all_the_same(gateway: Keyed) -> None:
    made = await gateway.create("anna")
    async with gateway.streaming(made["key"]) as stream:
        async with wire.connected(gateway.gateway.url) as admin:
            headers = [("authorization", f"Bearer {gateway.gateway.admin_key}")]
            await admin.request("DELETE", f"/admin/v1/keys/{made['id']}", headers=headers)
        assert failed_with(await rest_of(stream)) == "The API key was revoked."


@repeated(200, 2000)
@pytest.mark.timeout(600)
async def test_no_request_outlives_a_revocation_that_it_races_with(gateway: Keyed, repetitions: int) -> None:
    """Each race: streams begin at random moments around the revocation; each is refused, or cut within a second."""
    rng = Random(repetitions)
    began_before = 0
    for number in range(repetitions):
        made = await gateway.create(f"k{number}")
        revoked_at = 0.0

        async def race(key: str, delay: float) -> tuple[int, wire.Reply | None, float]:
            async with wire.connected(gateway.gateway.url) as client:
                await asyncio.sleep(delay)
                await client.post("/v1/chat/completions", chat(stream=True), [("authorization", f"Bearer {key}")])
                status, headers = await client.head()
                reply = await client.rest(status, headers)
                return status, reply, time.monotonic()

        racers = [asyncio.create_task(race(made["key"], rng.random() * 0.006)) for _ in range(3)]
        await asyncio.sleep(rng.random() * 0.006)
        await gateway.revoke(made["id"])
        revoked_at = time.monotonic()
        async with asyncio.timeout(30):
            for status, reply, ended in await asyncio.gather(*racers):
                assert ended - revoked_at < PROMISED, number
                assert reply is not None
                if status == 200:
                    began_before += 1
                    assert failed_with(reply) == "The API key was revoked."
                else:
                    assert status in (401, 429)
                    assert json.loads(reply.body)["error"]["code"] in (
                        "invalid_api_key", "api_key_revoked", "too_many_wrong_keys",
                    )  # fmt: skip
        assert (await gateway.get(made["key"])).status_code in (401, 429)
    assert began_before
