"""An engine that has lost a version of an adapter, because it has restarted: nobody who has seen nothing yet sees that,
and nobody gets another version."""

from __future__ import annotations

import asyncio
import time

from gateway.domain.snapshot import Readiness
from tests.fakes import faults
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.integration.dataplane import DataPlane, data_plane, engine, route, target
from tests.patience import LATE

OLD, NEW = "bot@aaaaaaaaaaaa", "bot@bbbbbbbbbbbb"
READY, LOADING, DOWN = Readiness.READY, Readiness.LOADING, Readiness.DOWN
ALPHA = Script(pieces=("ALPHA",))


def publish(plane: DataPlane, place: OpenAIUpstream | int, old: Readiness, *, current: str = OLD) -> None:
    """`bot` is what `current` says; both versions have their exact names."""
    exact = (route(OLD, target("local", OLD, old)), route(NEW, target("local", NEW)))
    now = target("local", current, old if current == OLD else READY)
    plane.publish([engine("local", place)], route("bot", now), *exact)


async def test_another_replica_of_the_same_version_answers() -> None:
    async with OpenAIUpstream({}) as one, OpenAIUpstream({OLD: ALPHA}) as two, data_plane() as plane:
        plane.publish([engine("one", one), engine("two", two)], route("bot", target("one", OLD), target("two", OLD)))
        reply = await plane.ask("bot")
        assert (reply.status, reply.header("x-gateway-upstream")) == (200, "two")
        assert plane.suspected == ["one"]


async def test_without_another_replica_it_waits_until_the_version_is_back() -> None:
    async with OpenAIUpstream({}) as upstream, data_plane() as plane:
        publish(plane, upstream, READY)
        task = plane.asking("bot")
        await plane.told(plane.suspected, 1)
        publish(plane, upstream, LOADING)
        await plane.told(plane.demanded, 1)
        assert plane.demanded == [OLD]
        upstream.models[OLD] = ALPHA
        publish(plane, upstream, READY)
        reply = await task
        assert (reply.status, reply.header("x-gateway-adapter")) == (200, OLD)
        assert len(upstream.ledger) == 2


async def test_it_keeps_its_version_although_the_name_has_moved_meanwhile() -> None:
    async with OpenAIUpstream({NEW: Script(pieces=("BETA",))}) as upstream, data_plane() as plane:
        publish(plane, upstream, READY)
        task = plane.asking("bot")
        await plane.told(plane.suspected, 1)
        publish(plane, upstream, LOADING, current=NEW)
        assert (await plane.ask("bot")).header("x-gateway-adapter") == NEW
        upstream.models[OLD] = ALPHA
        publish(plane, upstream, READY, current=NEW)
        reply = await task
        assert (reply.status, reply.header("x-gateway-adapter")) == (200, OLD)
        assert reply.json["choices"][0]["message"]["content"] == "ALPHA"


async def test_an_engine_that_is_not_there_for_a_moment_is_waited_for() -> None:
    async with OpenAIUpstream({OLD: ALPHA}) as upstream, data_plane() as plane:
        await upstream.stop()
        publish(plane, upstream, READY)
        task = plane.asking("bot")
        await plane.told(plane.suspected, 1)
        publish(plane, upstream, LOADING)
        await upstream.start()
        publish(plane, upstream, READY)
        assert (await task).status == 200


async def test_one_that_stays_away_is_told() -> None:
    with faults.closed_port() as url:
        async with data_plane() as plane:
            port = int(url.rpartition(":")[2].removesuffix("/v1"))
            publish(plane, port, READY)
            task = plane.asking("bot")
            await plane.told(plane.suspected, 1)
            publish(plane, port, DOWN)
            assert (await task).error["code"] == "model_unavailable"


async def test_what_the_control_plane_sees_nothing_of_is_told_after_a_moment() -> None:
    """It was looked at and is said to be there: waiting for longer helps nobody."""
    async with OpenAIUpstream({}) as upstream, data_plane() as plane:
        publish(plane, upstream, READY)
        began = time.monotonic()
        reply = await plane.ask("bot")
        assert time.monotonic() - began < LATE
        assert (reply.status, reply.error["code"]) == (503, "model_not_loaded")
        assert reply.header("x-should-retry") == "true"
        assert len(upstream.ledger) == 1


async def test_a_version_that_is_lost_again_and_again_is_not_tried_for_ever() -> None:
    async with OpenAIUpstream({}) as upstream, data_plane() as plane:
        publish(plane, upstream, READY)
        task = plane.asking("bot")
        for round in range(3):
            await plane.told(plane.suspected, round + 1)
            publish(plane, upstream, LOADING)
            await asyncio.sleep(0)
            publish(plane, upstream, READY)
        reply = await task
        assert (reply.status, reply.error["code"]) == (503, "model_not_loaded")
        assert len(upstream.ledger) == 3


async def test_a_version_that_is_removed_meanwhile_is_not_replaced_by_another() -> None:
    async with OpenAIUpstream({NEW: Script()}) as upstream, data_plane() as plane:
        publish(plane, upstream, READY)
        task = plane.asking("bot")
        await plane.told(plane.suspected, 1)
        plane.publish([engine("local", upstream)], route("bot", target("local", NEW)))
        reply = await task
        assert (reply.status, reply.error["code"]) == (503, "model_not_loaded")


async def test_who_has_seen_the_first_words_gets_no_second_answer() -> None:
    cut = Script(after=1, fault=faults.cut)
    async with OpenAIUpstream({OLD: cut}) as upstream, data_plane() as plane:
        publish(plane, upstream, READY)
        reply = await plane.ask("bot", stream=True)
        assert reply.failure["code"] == "upstream_cut"
        assert len(upstream.ledger) == 1
