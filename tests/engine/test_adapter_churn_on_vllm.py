"""A name moves, and versions come and go, while people chat: each is answered by one version, the one it leads to."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine.crowd import LONGEST, Crowd, Registrar, Signpost
from tests.real import BASE, Served
from tests.voices import ALPHA, BETA, SENTENCES, packed, variant

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(LONGEST * 3)]

NAME = "herald"
HITS = "vllm:prefix_cache_hits_total"
READERS, OTHERS = [lambda: NAME] * 13, [lambda: BASE] * 3


class Herald:
    """The adapter, as its registrar sees it.  Versions are named as engines name them."""

    def __init__(self, real: Served, registrar: Registrar, contents: dict[str, bytes]) -> None:
        self.registrar = registrar
        self.sentences: dict[str, set[str]] = {}
        self.signpost = Signpost()
        self.crowd = Crowd(real.gateway, self.sentences, {NAME: self.signpost})
        self._contents = contents

    async def add(self, content: str) -> str:
        """The version, when it is Ready."""
        version = f"{NAME}@{await self.registrar.add(NAME, self._contents[content], within=LONGEST)}"
        self.sentences[version] = {SENTENCES[content.partition(" ")[0]]}
        return version

    async def promote(self, version: str, *beside: str) -> None:
        with self.signpost.turning(version, *beside):
            await self.registrar.promote(NAME, _digits(version))

    async def bring(self, version: str, *beside: str) -> None:
        """Promotes a version that nobody has asked for lately."""
        with self.signpost.turning(version, *beside):
            await self.registrar.bring(NAME, _digits(version))

    async def roll_back(self, version: str, *beside: str) -> None:
        """To what must be this version."""
        with self.signpost.turning(version, *beside):
            assert await self.registrar.rollback(NAME) == _digits(version)

    async def canary(self, version: str, weight: float, *leads: str) -> None:
        with self.signpost.turning(*leads):
            await self.registrar.canary(NAME, _digits(version), weight)

    async def remove(self, version: str) -> None:
        await self.registrar.remove(NAME, _digits(version))


def _digits(version: str) -> str:
    return version.partition("@")[2]


@pytest.fixture
async def herald(real: Served, voices: dict[str, Path], tmp_path: Path) -> AsyncIterator[Herald]:
    drafts = {f"{voice} {number}": (voice, number) for voice in (ALPHA, BETA) for number in range(2)}
    contents = {
        content: packed(variant(voices[voice], number, tmp_path / content))
        for content, (voice, number) in drafts.items()
    }
    herald = Herald(real, Registrar(real.gateway), contents)
    yield herald
    await herald.registrar.remove(NAME)


async def test_every_answer_is_wholly_one_versions_while_the_name_moves_two_hundred_times(
    real: Served, herald: Herald
) -> None:
    alpha, beta = await herald.add(f"{ALPHA} 0"), await herald.add(f"{BETA} 0")
    crowd = herald.crowd
    cached = await asyncio.to_thread(real.engine_metric, HITS)
    with herald.signpost.turning(alpha):
        pass
    async with crowd.chatting(*READERS, *OTHERS):
        await crowd.hear(len(READERS))
        for flip in range(1, 201):
            match flip % 4:
                case 1 | 3:
                    await herald.promote(beta)
                case 2:
                    await herald.roll_back(alpha)
                case _:
                    await herald.promote(alpha)
            await crowd.hear(24 if flip % 20 == 0 else 1)  # now and then all have time to be told of one version only
    assert not crowd.wrong
    assert {told.adapter for told in crowd.told} == {alpha, beta, None}
    settled = [told for told in crowd.told if told.model == NAME and len(told.ways) == 1]
    print(f"{len(crowd.told)} answers, {len(settled)} of them between two moves")  # noqa: T201
    assert len(settled) >= 50, "the name was not moved while these were admitted: none of them is stale"
    assert await asyncio.to_thread(real.engine_metric, HITS) > cached, "prefixes are not cached: nothing can be stale"


async def test_versions_are_canaries_removed_and_added_again_while_people_chat(herald: Herald) -> None:
    alpha, beta = await herald.add(f"{ALPHA} 0"), await herald.add(f"{BETA} 0")
    crowd = herald.crowd
    with herald.signpost.turning(alpha):
        pass
    async with crowd.chatting(*READERS, *OTHERS):
        await crowd.hear(len(READERS))
        fresh = await herald.add(f"{BETA} 1")
        await herald.canary(fresh, 50, alpha, fresh)
        began = herald.signpost.settled
        await crowd.hear(4 * len(READERS))
        await herald.bring(beta, fresh)
        await crowd.hear(len(READERS))
        await herald.roll_back(alpha, fresh)
        await herald.canary(fresh, 0, alpha)
        await herald.remove(fresh)
        await crowd.hear(len(READERS))
        assert await herald.add(f"{BETA} 1") == fresh
        await herald.promote(fresh)
        await crowd.hear(len(READERS))
        await herald.roll_back(alpha)
        await herald.remove(fresh)
        await herald.remove(beta)
        assert await herald.add(f"{BETA} 0") == beta
        await crowd.hear(len(READERS))
    assert not crowd.wrong
    had = defaultdict(set)
    for told in crowd.told:
        if told.model == NAME and told.asked == began and len(told.ways) == 1:
            had[told.user].add(told.adapter)
    assert set().union(*had.values()) == {alpha, fresh}
    assert all(len(adapters) == 1 for adapters in had.values()), "somebody was told both"
