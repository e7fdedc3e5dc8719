"""A crowd talks to one name while it moves: every answer is whole, and of the version that it names."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.fakes.lora_engine import LoraEngine
from tests.integration.adapter_rig import Answer, Caller, Shelf, Town, town
from tests.patience import LATE
from tests.tiers import repeated

CROWD = 200
PACE = 0.3  # seconds between two words of an answer: most of the time the crowd listens


class Story:
    """Which versions the name may have answered with, from one move to the next."""

    def __init__(self, *versions: str) -> None:
        self.told = [frozenset(versions)]
        self.so = 0  # what was told at this place is surely so

    @asynccontextmanager
    async def moving(self, *versions: str) -> AsyncIterator[None]:
        """Somebody says in this block that it answers with these, and that is so when the block ends."""
        self.told.append(frozenset(versions))
        yield
        self.so = len(self.told) - 1

    def since(self, begun: int) -> frozenset[str]:
        """What it may have answered with to somebody who asked then."""
        return frozenset().union(*self.told[begun:])


class Crowd:
    """People who ask again as soon as they are answered.  `heard`: how many answers of each version (`name@version`)
    they had."""

    def __init__(self, name: str, story: Story) -> None:
        self.heard: Counter[str] = Counter()
        self._name = name
        self._story = story
        self._enough = asyncio.Event()

    async def ask(self, caller: Caller, words: int = 4, user: str = "somebody") -> Answer:
        """The answer is whole, and of a version that the name pointed to at some moment since it was asked for."""
        begun = self._story.so
        answer = await caller.ask(self._name, words, user=user)
        assert answer.whole, answer
        assert answer.adapter is not None
        name, _, version = answer.adapter.partition("@")
        assert name == self._name, answer
        assert version in self._story.since(begun), (answer, self._story.told[begun:])
        self.heard[answer.adapter] += 1
        return answer

    @asynccontextmanager
    async def talking(self, callers: list[Caller]) -> AsyncIterator[None]:
        """They talk all the time, each for as long as it likes, and the last answers are heard to their end."""

        async def talk(caller: Caller, number: int) -> None:
            while not self._enough.is_set():
                await self.ask(caller, words=2 + number % 5, user=f"user-{number}")

        async with asyncio.TaskGroup() as group:
            for number, caller in enumerate(callers):
                group.create_task(talk(caller, number))
            try:
                yield
            finally:
                self._enough.set()


@asynccontextmanager
async def busy(folder: Path, contents: int, replicas: int = 1, queue: int = 0) -> AsyncIterator[tuple[Shelf, Town]]:
    """A gateway whose engines hold so many versions of `bot`, of which the first is current.  Who finds no place on one
    engine goes to the next at once, unless there is a queue."""
    shelf = Shelf(folder)
    await shelf.stock({"bot": range(contents)})
    places = {"limit": CROWD if replicas == 1 else CROWD * 3 // 4, "queue": queue}
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(LoraEngine(str(shelf.base), step=PACE, max_cpu_loras=16))
            for _ in range(replicas)
        ]
        running = await stack.enter_async_context(town(shelf, *engines, concurrency=places))
        mover = await running.mover()
        for number in range(contents):
            await mover.load("bot", shelf.version(number))
            await asyncio.gather(*(proven(engine, f"bot@{shelf.version(number)}") for engine in engines))
        yield shelf, running


async def proven(engine: LoraEngine, name: str) -> None:
    async with asyncio.timeout(3 * LATE):
        while not engine.probed[name]:
            await asyncio.sleep(0.01)  # an engine has no event for it


async def check_accounts(running: Town, *crowds: Crowd) -> None:
    """The metrics say what the crowds and the engines say."""
    for crowd in crowds:
        for adapter, count in crowd.heard.items():
            name, _, version = adapter.partition("@")
            counted = await running.gateway.metric("gateway_adapter_requests_total", adapter=name, version=version)
            assert counted == count == sum(engine.answered[adapter] for engine in running.engines)
    assert await running.gateway.metric("gateway_requests_waiting") == 0
    assert await running.gateway.metric("gateway_requests_in_flight") == 0


async def move_about(folder: Path, flips: int, replicas: int) -> None:
    """The name of an adapter moves there and back, so many times, while the crowd talks to it."""
    async with busy(folder, 2, replicas) as (shelf, running):
        old, new = shelf.version(0), shelf.version(1)
        mover, someone = await running.mover(), await running.caller()
        story = Story(old)
        crowd = Crowd("bot", story)
        async with crowd.talking(await running.callers(CROWD - 1)):
            for flip in range(flips):
                version = old if flip % 2 else new
                async with story.moving(version):
                    if version == new:
                        await mover.promote("bot", new)
                    else:
                        assert await mover.rollback("bot") == old
                if flip % 25 == 0:
                    assert (await crowd.ask(someone, words=1)).adapter == f"bot@{version}", "the very next one"
        running.sound()
        assert set(crowd.heard) == {f"bot@{old}", f"bot@{new}"}
        assert sum(engine.most_requests for engine in running.engines) >= CROWD - 1
        assert [what for engine in running.engines for what, _ in engine.asked] == ["load"] * 2 * replicas
        await check_accounts(running, crowd)
        # Nobody has waited for a swap, nor for anything else.
        assert await running.gateway.metric("gateway_wait_seconds_count") == 0
        assert await running.gateway.metric("gateway_requests_total") == crowd.heard.total()


@repeated(200, 20_000)
async def test_a_name_moves_hundreds_of_times_and_no_answer_is_mixed_stale_lost_or_late(
    repetitions: int, tmp_path: Path
) -> None:
    await move_about(tmp_path, repetitions, replicas=1)


@repeated(50, 10_000)
async def test_it_moves_on_two_engines_at_once(repetitions: int, tmp_path: Path) -> None:
    await move_about(tmp_path, repetitions, replicas=2)


@repeated(1, 200)
async def test_versions_come_and_go_and_come_back_while_the_crowd_talks(repetitions: int, tmp_path: Path) -> None:
    async with busy(tmp_path, 2, queue=2 * CROWD) as (shelf, running):
        old, new = shelf.version(0), shelf.version(1)
        mover, someone = await running.mover(), await running.caller()
        story = Story(old)
        crowd = Crowd("bot", story)

        async def next_answer(version: str) -> None:
            assert (await crowd.ask(someone, words=1)).adapter == f"bot@{version}", "the very next one"

        async with crowd.talking(await running.callers(CROWD - 1)):
            await next_answer(old)
            for turn in range(repetitions):
                fresh, other = 2 + 2 * turn, 3 + 2 * turn
                third = await mover.add("bot", shelf.archive(fresh))
                for weight in (10, 50):
                    async with story.moving(old, third):
                        await mover.canary("bot", third, weight)
                async with story.moving(third):
                    await mover.promote("bot", third)
                await next_answer(third)
                async with story.moving(old):
                    assert await mover.rollback("bot") == old
                await next_answer(old)
                await mover.unload("bot", third)
                await mover.remove("bot", third)
                # The same content again, and then as what the name points to, which goes under everybody's feet.
                assert await mover.add("bot", shelf.archive(fresh)) == third
                async with story.moving(third):
                    await mover.promote("bot", third)
                async with story.moving(old):
                    await mover.remove("bot", third)
                # Another content, which a canary gets whole, and what was current goes and comes back.
                fourth = await mover.add("bot", shelf.archive(other))
                async with story.moving(fourth):
                    await mover.canary("bot", fourth, 100)
                await next_answer(fourth)
                async with story.moving(fourth, new):
                    await mover.promote("bot", new)
                async with story.moving(new):
                    await mover.remove("bot", fourth)
                await next_answer(new)
                await mover.remove("bot", old)
                assert await mover.add("bot", shelf.archive(0)) == old
                async with story.moving(old):
                    await mover.promote("bot", old)
                await next_answer(old)
        running.sound()
        await check_accounts(running)
        for adapter, count in crowd.heard.items():
            assert sum(engine.answered[adapter] for engine in running.engines) == count


async def test_a_whole_adapter_goes_and_comes_back_and_its_last_answer_is_heard_to_the_end(tmp_path: Path) -> None:
    async with busy(tmp_path, 1) as (shelf, running):
        version = shelf.version(0)
        mover, listener, someone = await running.mover(), await running.caller(), await running.caller()
        (engine,) = running.engines
        listening = asyncio.create_task(listener.ask("bot", words=10))
        async with asyncio.timeout(LATE):
            while not engine.decoding[f"bot@{version}"]:
                await asyncio.sleep(0.01)  # an engine has no event for it
        await mover.remove("bot")
        assert (await someone.ask("bot")).status == 404
        assert (await someone.ask(f"bot@{version}")).status == 404
        assert await mover.add("bot", shelf.archive(0)) == version
        assert (await someone.ask("bot", words=1)).adapter == f"bot@{version}"
        assert (await listening).whole
        running.sound()
