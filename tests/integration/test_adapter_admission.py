"""More adapters than an engine computes with at once: they take turns, and whoever waits is told."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

from tests.fakes import faults
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.integration.dataplane import OPEN_WEBUI, DataPlane, data_plane, engine, route, target
from tests.patience import LATE

NAMES = [f"bot{number}@0123456789ab" for number in range(6)]


def publish(plane: DataPlane, upstream: OpenAIUpstream, **limits: float) -> None:
    """Every adapter, and the base model, on one engine."""
    routes = [route(name.partition("@")[0], target("local", name)) for name in NAMES]
    plane.publish([engine("local", upstream, **limits)], *routes, route("base", target("local", "base")))


def answers(*names: str) -> dict[str, Script]:
    return {name: Script(itl=0.002) for name in (*names, "base")}


async def test_an_engine_never_computes_with_more_adapters_than_it_can() -> None:
    async with OpenAIUpstream(answers(*NAMES)) as upstream, data_plane() as plane:
        publish(plane, upstream, max_loras=2)
        replies = await asyncio.gather(*(plane.ask(f"bot{number % 6}") for number in range(60)))
        assert {reply.status for reply in replies} == {200}
        assert {reply.header("x-gateway-adapter") for reply in replies} == set(NAMES)
        steps = [(attempt.arrived, 1, attempt.model) for attempt in upstream.ledger]
        steps += [(attempt.ended, -1, attempt.model) for attempt in upstream.ledger]
        running = dict.fromkeys(NAMES, 0)
        for _, step, model in sorted(steps):
            running[model] += step
            assert sum(count > 0 for count in running.values()) <= 2
        waited = plane.figure("gateway_wait_seconds_count", upstream="local", reason="adapter")
        assert waited > 0


async def test_a_wait_is_visible_and_ends_when_another_adapter_has_ended() -> None:
    models = {**answers(*NAMES), NAMES[0]: faults.hang}
    async with OpenAIUpstream(models) as upstream, data_plane() as plane:
        publish(plane, upstream, max_loras=1)
        first = plane.asking("bot0")
        await upstream.attempt(0)
        second = plane.asking("bot1")
        await plane.waiting("adapter", 1)
        assert plane.figure("gateway_adapters_active", upstream="local") == 1
        assert (await plane.ask("base")).status == 200, "a request without an adapter waits for none"
        first.cancel()
        reply = await second
        assert (reply.status, reply.header("x-gateway-adapter")) == (200, NAMES[1])


async def test_who_waits_for_too_long_is_told_what_for() -> None:
    async with OpenAIUpstream(dict.fromkeys(NAMES, faults.hang)) as upstream, data_plane() as plane:
        publish(plane, upstream, max_loras=2, queue_timeout=0.3)
        busy = [plane.asking("bot0"), plane.asking("bot1")]
        await upstream.attempt(1)
        reply = await plane.ask("bot2")
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert reply.error["message"] == (
            f"No place for the adapter '{NAMES[2]}' on the upstream 'local' became free within 0.3 s: "
            "2 adapters at once is its limit (max_loras)."
        )
        assert reply.header("retry-after")
        for task in busy:
            task.cancel()


async def test_a_full_queue_is_a_503_at_once_but_not_for_the_base_model() -> None:
    models = {**answers(), **dict.fromkeys(NAMES, faults.hang)}
    async with OpenAIUpstream(models) as upstream, data_plane() as plane:
        publish(plane, upstream, max_loras=1, queue=2)
        async with AsyncExitStack() as stack:
            tasks = [plane.asking(f"bot{number}") for number in range(3)]
            stack.push_async_callback(asyncio.wait, tasks)
            for task in tasks:
                stack.callback(task.cancel)
            await plane.waiting("adapter", 2)
            reply = await plane.ask("bot3")
            assert (reply.status, reply.error["code"]) == (503, "overloaded")
            assert (await plane.ask("base")).status == 200
            assert len(upstream.ledger) == 2


async def test_a_replica_with_a_full_queue_is_passed_over_for_one_with_the_same_version() -> None:
    busy = {NAMES[0]: faults.hang, NAMES[1]: Script()}
    async with OpenAIUpstream(busy) as one, OpenAIUpstream({NAMES[1]: Script()}) as two, data_plane() as plane:
        engines = [engine("one", one, max_loras=1, queue=0), engine("two", two, max_loras=1)]
        both = route("bot1", target("one", NAMES[1]), target("two", NAMES[1]))
        plane.publish(engines, route("bot0", target("one", NAMES[0])), both)
        first = plane.asking("bot0")
        await one.attempt(0)
        reply = await plane.ask("bot1")
        assert (reply.header("x-gateway-upstream"), reply.header("x-gateway-adapter")) == ("two", NAMES[1])
        first.cancel()


async def test_an_engine_that_comes_back_with_more_room_takes_more_adapters_at_once() -> None:
    async with OpenAIUpstream(dict.fromkeys(NAMES, faults.hang)) as upstream, data_plane() as plane:
        publish(plane, upstream, max_loras=1)
        tasks = [plane.asking("bot0"), plane.asking("bot1")]
        await plane.waiting("adapter", 1)
        publish(plane, upstream, max_loras=3)
        tasks.append(plane.asking("bot2"))
        await upstream.attempt(2)
        assert plane.figure("gateway_adapters_active", upstream="local") == 3
        for task in tasks:
            task.cancel()


async def test_who_leaves_while_waiting_leaves_nothing_behind() -> None:
    models = {**answers(*NAMES), NAMES[0]: faults.hang}
    async with OpenAIUpstream(models) as upstream, data_plane() as plane:
        publish(plane, upstream, max_loras=1)
        first = plane.asking("bot0")
        await upstream.attempt(0)
        leavers = [plane.asking("bot1") for _ in range(5)]
        stays = plane.asking("bot2")
        await plane.waiting("adapter", 6)
        for task in leavers:
            task.cancel()
        await plane.waiting("adapter", 1)
        first.cancel()
        assert (await stays).status == 200
        assert [attempt.model for attempt in upstream.ledger] == [NAMES[0], NAMES[2]]


async def test_open_webui_shows_the_place_in_the_queue() -> None:
    models = {**answers(*NAMES), NAMES[0]: faults.hang}
    async with OpenAIUpstream(models) as upstream, data_plane() as plane:
        publish(plane, upstream, max_loras=1)
        first = plane.asking("bot0")
        await upstream.attempt(0)
        others = [plane.asking(f"bot{number}") for number in (1, 2)]
        await plane.waiting("adapter", 2)
        shown = plane.asking("bot2", stream=True, headers=OPEN_WEBUI)
        await plane.waiting("adapter", 3)
        await asyncio.sleep(1.3)  # a status line comes once a second
        first.cancel()
        reply = await asyncio.wait_for(shown, LATE)
        events = [json.loads(event) for event in reply.events if event != b"[DONE]"]
        lines = [event["event"]["data"] for event in events if "event" in event]
        assert lines[0]["description"] == "Queued, position 3"
        assert lines[-1]["hidden"]
        assert reply.done
        await asyncio.gather(*others)
