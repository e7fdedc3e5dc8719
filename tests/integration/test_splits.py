"""A name whose traffic is divided between versions of an adapter, as its callers see it."""

from __future__ import annotations

import asyncio
from collections import Counter

from gateway.domain.snapshot import Readiness, Split, Target, Variant
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.integration.dataplane import DataPlane, data_plane, engine, route, target
from tests.patience import LATE

OLD, NEW = "bot@aaaaaaaaaaaa", "bot@bbbbbbbbbbbb"
MODELS = {OLD: Script(pieces=("ALPHA",)), NEW: Script(pieces=("BETA",))}
SAYS = {OLD: "ALPHA", NEW: "BETA"}


def publish(plane: DataPlane, upstream: OpenAIUpstream, percent: float, *new: Target) -> None:
    split = Split("salt", (Variant(percent / 100, new or (target("local", NEW),)),))
    exact = (route(name, target("local", name)) for name in (OLD, NEW))
    plane.publish([engine("local", upstream)], route("bot", target("local", OLD), split=split), *exact)


async def test_a_chat_stays_with_the_version_that_answered_it_first() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, 50)
        first: dict[str, str | None] = {}
        for _ in range(2):
            for number in range(40):
                chat = f"chat-{number}"
                reply = await plane.ask("bot", headers=[("x-openwebui-chat-id", chat)], user="somebody else each time")
                version = reply.header("x-gateway-adapter")
                assert version == first.setdefault(chat, version)
                assert version is not None
                assert reply.json["choices"][0]["message"]["content"] == SAYS[version]
                assert reply.json["model"] == "bot"
        assert set(first.values()) == {OLD, NEW}


async def test_without_a_chat_it_is_the_user_and_without_a_user_the_key() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, 50)

        async def versions(**more: str) -> set[str | None]:
            return {(await plane.ask("bot", **more)).header("x-gateway-adapter") for _ in range(5)}

        by_user = [await versions(user=f"user-{number}") for number in range(12)]
        by_safety = [await versions(safety_identifier=f"user-{number}") for number in range(12)]
        assert by_user == by_safety
        assert all(len(found) == 1 for found in by_user)
        assert set().union(*by_user) == {OLD, NEW}
        assert len(await versions(key="alice")) == len(await versions(key="bob")) == 1


async def test_the_exact_name_is_that_version_whatever_the_share() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, 100)
        assert (await plane.ask("bot")).header("x-gateway-adapter") == NEW
        assert (await plane.ask(OLD)).header("x-gateway-adapter") == OLD


async def test_who_belongs_to_a_version_that_loads_waits_for_it_and_the_others_do_not() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, 50, target("local", NEW, Readiness.LOADING))
        replies = [plane.asking("bot", user=f"user-{number}") for number in range(20)]
        await plane.told(plane.demanded, 1)
        async with asyncio.timeout(LATE):
            while sum(map(asyncio.Task.done, replies)) + plane.figure("gateway_requests_waiting") < len(replies):
                await asyncio.sleep(0.005)  # each is answered or waits
        done, waiting = [[task for task in replies if task.done() is over] for over in (True, False)]
        assert done
        assert waiting
        assert {task.result().header("x-gateway-adapter") for task in done} == {OLD}
        assert set(plane.demanded) == {NEW}
        publish(plane, upstream, 50)
        assert {(await task).header("x-gateway-adapter") for task in waiting} == {NEW}


async def test_who_belongs_to_a_version_that_cannot_answer_gets_the_current_one() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, 100, target("local", NEW, Readiness.DOWN))
        assert (await plane.ask("bot")).header("x-gateway-adapter") == OLD


async def test_the_metrics_show_each_versions_share_until_it_is_gone() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        publish(plane, upstream, 30)
        answered = Counter(
            [(await plane.ask("bot", user=f"user-{number}")).header("x-gateway-adapter") for number in range(60)]
        )
        await plane.ask(OLD)
        for adapter, count in (answered + Counter([OLD])).items():
            assert adapter is not None
            name, _, version = adapter.partition("@")
            shown = plane.figure("gateway_adapter_requests_total", adapter=name, version=version, reason="completed")
            assert shown == count
        before = plane.figure("gateway_requests_total", adapter=NEW)
        version = OLD.partition("@")[2]
        plane.metrics.adapter_state("bot", version, "Ready")
        plane.metrics.adapter_state("bot", version, "")
        assert version not in plane.metrics.exposition().decode()
        assert plane.figure("gateway_requests_total", adapter=NEW) == before > 0


async def test_a_name_that_a_key_may_not_use_does_not_exist_for_it() -> None:
    async with OpenAIUpstream(MODELS) as upstream, data_plane() as plane:
        routes = [route("bot", target("local", OLD)), route(OLD, target("local", OLD))]
        plane.publish([engine("local", upstream)], *routes, models={"bob": ["other", "x-*"]})
        assert (await plane.ask("bot", key="alice")).status == 200
        for model in ("bot", OLD):
            refused = await plane.ask(model, key="bob")
            unknown = await plane.ask(model.replace("bot", "not"), key="alice")
            assert refused.status == unknown.status == 404
            assert refused.body == unknown.body.replace(b"not", b"bot", 1)
        assert plane.figure("gateway_requests_total", model="bot", status="404") == 0, "a label that a client chose"
