"""A request for an adapter that no engine holds: it asks for it, waits, and is served when it is there."""

from __future__ import annotations

import asyncio
import time

from gateway.domain.snapshot import Readiness, Snapshot
from tests.fakes import faults
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.integration.dataplane import DataPlane, data_plane, engine, route, target
from tests.patience import LATE, near

OLD, NEW = "bot@aaaaaaaaaaaa", "bot@bbbbbbbbbbbb"
MODELS = {OLD: Script(pieces=("ALPHA",)), NEW: Script(pieces=("BETA",))}
READY, LOADING, DOWN = Readiness.READY, Readiness.LOADING, Readiness.DOWN


def publish(
    plane: DataPlane, upstream: OpenAIUpstream, readiness: Readiness, current: str = OLD, **limits: float
) -> None:
    exact = (route(name, target("local", name, readiness)) for name in (OLD, NEW))
    plane.publish([engine("local", upstream, **limits)], route("bot", target("local", current, readiness)), *exact)


async def test_a_request_asks_for_its_adapter_and_is_served_when_it_is_there() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, LOADING)
        before = time.monotonic()
        task = plane.asking("bot")
        await plane.told(plane.demanded, 1)
        assert plane.demanded == [OLD]
        await plane.waiting("loading", 1)
        since = plane.upstreams.wanted_since(OLD)
        assert since is not None
        assert before <= since <= time.monotonic()
        assert before <= plane.upstreams.last_asked[OLD]
        publish(plane, upstream, READY)
        assert (await task).header("x-gateway-adapter") == OLD
        assert plane.upstreams.wanted_since(OLD) is None
        assert plane.figure("gateway_wait_seconds_count", upstream="local", reason="loading") == 1


async def test_what_others_load_does_not_wake_it_and_what_changes_for_it_asks_again() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, LOADING)
        task = plane.asking("bot")
        await plane.told(plane.demanded, 1)
        for _ in range(10):
            publish(plane, upstream, LOADING)  # as after each load of another adapter
            await asyncio.sleep(0)  # so that it would notice
        plane.publish([engine("local", upstream)], route("bot", target("local", NEW, LOADING)))
        await plane.told(plane.demanded, 2)
        assert plane.demanded == [OLD, NEW], "the version is decided when it is there"
        publish(plane, upstream, READY, NEW)
        assert (await task).header("x-gateway-adapter") == NEW


async def test_who_waits_for_too_long_is_told_so() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, LOADING, queue_timeout=0.3)
        began = time.monotonic()
        reply = await plane.ask("bot")
        assert near(time.monotonic() - began, 0.3)
        assert (reply.status, reply.error["code"]) == (503, "model_loading")
        assert f"'{OLD}' is loading on 'local'" in reply.error["message"]


async def test_who_waits_for_what_will_not_come_is_told_at_once() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, LOADING)
        task = plane.asking("bot")
        await plane.waiting("loading", 1)
        publish(plane, upstream, DOWN)
        assert (await task).error["code"] == "model_unavailable"
        assert plane.upstreams.wanted_since(OLD) is None


async def test_a_name_that_goes_while_it_is_waited_for_is_a_404() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, LOADING)
        task = plane.asking("bot")
        await plane.waiting("loading", 1)
        plane.publish([engine("local", upstream)])
        assert (await task).status == 404


async def test_no_more_wait_for_an_upstream_than_it_could_take() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, LOADING, limit=1, queue=2)
        tasks = [plane.asking("bot") for _ in range(3)]
        await plane.waiting("loading", 3)
        reply = await plane.ask("bot")
        assert (reply.status, reply.error["code"]) == (503, "model_loading")
        publish(plane, upstream, READY, limit=1, queue=2)
        assert {(await task).status for task in tasks} == {200}


async def test_who_leaves_while_it_loads_wants_it_no_longer() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, LOADING)
        task = plane.asking("bot")
        await plane.waiting("loading", 1)
        task.cancel()
        await plane.waiting("loading", 0)
        assert plane.upstreams.wanted_since(OLD) is None


# ---- who uses it


async def test_an_adapter_is_in_use_until_its_last_request_has_ended_and_then_somebody_is_told() -> None:
    async with OpenAIUpstream({OLD: faults.hang}) as upstream, data_plane() as plane:
        publish(plane, upstream, READY)
        tasks = [plane.asking("bot"), plane.asking(OLD)]
        await upstream.attempt(1)
        for left in (1, 0):
            assert plane.upstreams.in_use["local", OLD] == left + 1
            assert plane.idled == []
            tasks[left].cancel()
            async with asyncio.timeout(LATE):
                while plane.upstreams.in_use["local", OLD] > left:
                    await asyncio.sleep(0.005)  # the event for it is what is tested
        assert plane.idled == [("local", OLD)]


async def test_every_replica_that_a_request_may_still_go_to_is_in_use() -> None:
    async with OpenAIUpstream({OLD: faults.hang}) as upstream, data_plane() as plane:
        engines = [engine(name, upstream) for name in ("one", "two")]
        plane.publish(engines, route("bot", target("one", OLD), target("two", OLD)))
        task = plane.asking("bot")
        await upstream.attempt(0)
        assert dict(plane.upstreams.in_use) == {("one", OLD): 1, ("two", OLD): 1}
        task.cancel()


async def test_what_is_remembered_of_versions_that_are_gone_is_bounded() -> None:
    async with OpenAIUpstream({}) as upstream, data_plane() as plane:
        for number in range(200):
            name = f"bot@{number:012x}"
            upstream.models[name] = Script()
            routes = [route("bot", target("local", name)), route(name, target("local", name))]
            plane.publish([engine("local", upstream)], *routes)
            assert (await plane.ask("bot")).status == 200
        snapshot: Snapshot = plane.holder.current
        assert len(plane.upstreams.last_asked) <= len(snapshot.routes)
        assert name in plane.upstreams.last_asked
