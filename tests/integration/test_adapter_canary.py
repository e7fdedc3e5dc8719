"""A version gets a share of a name's traffic: as large as it was given, and the same people for as long as it has it.

Who somebody is, is the chat, else the user, else the key.  The shares follow from names alone, so what is found here is
found in each run.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.lora_engine import LoraEngine
from tests.integration.adapter_rig import Answer, Caller, Shelf, Town, town
from tests.tiers import repeated

OLD, NEW, NEWER = 0, 1, 2
USERS = [f"user-{number}" for number in range(1000)]
AT_ONCE = 24
SIGMAS = 4.0  # how far a share may be off; chance is farther off in one of 16,000 cases


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LoraEngine]:
    async with LoraEngine(str(tmp_path / "base"), step=0.002) as engine:
        yield engine


@pytest.fixture
async def shelf(tmp_path: Path) -> Shelf:
    """`bot` has three versions, of which the oldest is current."""
    shelf = Shelf(tmp_path)
    await shelf.stock({"bot": (OLD, NEW, NEWER)})
    return shelf


def within(share: float, percent: float, people: int) -> bool:
    """Whether a share among so many people is what was asked for, as near as chance allows."""
    wanted = percent / 100
    return abs(share - wanted) <= SIGMAS * math.sqrt(wanted * (1 - wanted) / people)


def by_user(name: str) -> dict[str, Any]:
    return {"user": name}


def by_safety(name: str) -> dict[str, Any]:
    return {"safety_identifier": name}


def by_chat(name: str) -> dict[str, Any]:
    return {"headers": [("x-openwebui-chat-id", name)], "user": "another one each time" + name[::-1]}


async def versions_of(running: Town, people: Iterable[str], ways: Any = (by_user,)) -> Mapping[str, str]:
    """Which version each of them gets, asked in each of these ways."""
    asked = [(name, way(name)) for name in people for way in ways]
    found: dict[str, str] = {}

    async def ask(caller: Caller) -> None:
        while asked:
            name, more = asked.pop()
            version = checked(await caller.ask("bot", words=1, stream=False, **more))
            assert found.setdefault(name, version) == version, f"{name} got two versions"

    async with asyncio.TaskGroup() as group:
        for caller in await running.callers(AT_ONCE):
            group.create_task(ask(caller))
    return found


def checked(answer: Answer) -> str:
    assert answer.whole, answer
    assert answer.adapter is not None
    return answer.adapter.partition("@")[2]


def on(found: Mapping[str, str], version: str) -> set[str]:
    """Who gets this version."""
    return {name for name, got in found.items() if got == version}


async def test_a_canary_gets_its_share_and_a_larger_one_takes_nobody_away(shelf: Shelf, engine: LoraEngine) -> None:
    new = shelf.version(NEW)
    async with town(shelf, engine) as running:
        mover = await running.mover()
        before: set[str] = set()
        for weight in (2.5, 10, 50, 90, 100):
            await mover.canary("bot", new, weight)
            now = on(await versions_of(running, USERS), new)
            assert within(len(now) / len(USERS), weight, len(USERS)), (weight, len(now))
            assert before <= now, "somebody had the canary and lost it although its share grew"
            before = now
        await mover.canary("bot", new, 0)
        assert on(await versions_of(running, USERS), new) == set()
        running.sound()


@repeated(1, 20)
async def test_everybody_keeps_a_version_for_as_long_as_the_shares_are_the_same(
    repetitions: int, shelf: Shelf, engine: LoraEngine
) -> None:
    new = shelf.version(NEW)
    async with town(shelf, engine) as running:
        await (await running.mover()).canary("bot", new, 30)
        first = await versions_of(running, USERS, (by_user, by_safety, by_chat))
        assert within(len(on(first, new)) / len(USERS), 30, len(USERS))
    for _ in range(repetitions):
        async with town(shelf, engine) as running:  # the gateway was started again
            assert await versions_of(running, USERS) == first
            mover = await running.mover()
            await mover.canary("bot", new, 0)
            await mover.canary("bot", new, 30)
            assert await versions_of(running, USERS) == first, "begun again, it is dealt to the same people"
            running.sound()
    assert sorted(engine.loads) == sorted(f"bot@{shelf.version(number)}" for number in (OLD, NEW, NEWER))


async def test_two_canaries_have_their_shares_beside_each_other(shelf: Shelf, engine: LoraEngine) -> None:
    shares = {shelf.version(OLD): 50.0, shelf.version(NEW): 20.0, shelf.version(NEWER): 30.0}
    async with town(shelf, engine) as running:
        mover = await running.mover()
        for version in (shelf.version(NEW), shelf.version(NEWER)):
            await mover.canary("bot", version, shares[version])
        found = Counter((await versions_of(running, USERS)).values())
        assert set(found) == set(shares)
        for version, percent in shares.items():
            assert within(found[version] / len(USERS), percent, len(USERS)), (version, found)
            counted = await running.gateway.metric("gateway_adapter_requests_total", adapter="bot", version=version)
            assert counted == found[version]


async def test_who_has_no_chat_and_is_no_user_is_known_by_the_key(shelf: Shelf, engine: LoraEngine) -> None:
    keys = [{"name": name, "key": "gw-" + hashlib.sha256(name.encode()).hexdigest()} for name in USERS[:60]]
    new = shelf.version(NEW)
    async with town(shelf, engine, keys=keys) as running:
        await (await running.mover()).canary("bot", new, 50)
        named = await versions_of(running, USERS[:60])
        for key in keys:
            caller = await running.caller(key["key"])
            for _ in range(2):
                version = checked(await caller.ask("bot", words=1, stream=False))
                assert version == named[key["name"]], "a key is known by its name, as a user is"
        assert 0 < len(on(named, new)) < len(keys)


async def test_whoever_was_a_canarys_is_the_new_versions_when_it_is_promoted_and_nobody_gets_a_third(
    shelf: Shelf, engine: LoraEngine
) -> None:
    old, new = shelf.version(OLD), shelf.version(NEW)
    async with town(shelf, engine) as running:
        mover = await running.mover()
        await mover.canary("bot", new, 40)
        before = await versions_of(running, USERS)
        assert set(before.values()) == {old, new}
        await mover.promote("bot", new)
        assert set((await versions_of(running, USERS)).values()) == {new}
        assert await mover.rollback("bot") == old
        assert set((await versions_of(running, USERS)).values()) == {old}, "going back ends the canary, too"
        await mover.canary("bot", new, 40)
        assert await versions_of(running, USERS) == before
        running.sound()
