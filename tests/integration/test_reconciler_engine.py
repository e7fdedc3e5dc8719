"""What an engine is asked, in which order, and what is taken for its answer: real HTTP, a real store, a real probe."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.controlplane.drift import Hub
from gateway.controlplane.reconciler import Limits
from gateway.dataplane.admission import Admission
from gateway.domain.errors import Overloaded
from gateway.domain.snapshot import Concurrency, Upstream
from tests.fakes.fake_vllm_http import VLLM, error
from tests.integration.kept_engine import QUICK, Kept, Stock, kept
from tests.patience import LATE

NEVER = 3600.0  # seconds: what comes, comes because something happened
EVENTS_ONLY = Limits(look=NEVER, retry=NEVER, lasting_retry=NEVER)
ALERT = replace(QUICK, look=0.05, lasting_retry=0.05)


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    return Stock(tmp_path)


async def round_trips(engine: Kept, count: int = 3) -> None:
    """Long enough for whatever is under way: so many lists are asked for and answered."""
    for _ in range(count):
        engine.reconciler.wake()
        await engine.probe.refresh()


# ---- order


async def test_residents_are_loaded_in_their_order_and_each_is_proven_before_it_counts(stock: Stock) -> None:
    a, b, c = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock)) as engine:
        engine.hold(b, c, a)
        await engine.until(lambda: len(engine.proven) == 3)
        assert vllm.loads == [b, c, a]
        assert vllm.probed == [b, c, a]
        assert [len(proven) for proven in engine.seen] == sorted(len(proven) for proven in engine.seen)
        assert set(engine.reconciler.since) == {a, b, c}


async def test_what_gives_way_goes_before_what_takes_its_place_comes(stock: Stock) -> None:
    a, b, c = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock, room=2)) as engine:
        engine.hold(a, b)
        await engine.until(lambda: engine.proven == {a, b})
        engine.hold(c, b)
        await engine.until(lambda: engine.proven == {b, c})
        assert vllm.asked[2:] == [("unload", a), ("load", c)]
        assert vllm.most == 2


async def test_what_a_request_uses_goes_when_that_has_ended_and_then_at_once(stock: Stock) -> None:
    a, b, _ = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock, room=1, limits=EVENTS_ONLY)) as engine:
        engine.hold(a)
        await engine.until(lambda: engine.proven == {a})
        engine.in_use[a] = 1
        engine.hold(b)
        await round_trips(engine)
        assert vllm.asked == [("load", a)]
        engine.in_use[a] = 0
        engine.reconciler.wake()
        await engine.until(lambda: engine.proven == {b})
        assert vllm.asked == [("load", a), ("unload", a), ("load", b)]


async def test_what_no_record_names_any_more_goes_after_its_grace(stock: Stock) -> None:
    a, b, _ = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock, limits=EVENTS_ONLY)) as engine:
        engine.hold(a, b)
        await engine.until(lambda: engine.proven == {a, b})
        engine.in_use[b] = 1
        engine.forget(a, b)
        await vllm.until(lambda: ("unload", a) in vllm.asked)
        assert b in vllm.adapters
        engine.in_use[b] = 0
        engine.reconciler.wake()
        await vllm.until(lambda: not vllm.adapters)


async def test_a_healthy_engine_gets_its_adapters_by_events_alone(stock: Stock) -> None:
    a, b, _ = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock, limits=EVENTS_ONLY)) as engine:
        engine.hold(a, b)
        await engine.until(lambda: engine.proven == {a, b})
        await vllm.stop()
        engine.probe.suspect()
        await engine.until(lambda: not engine.proven)
        await vllm.start()
        engine.probe.suspect()
        await engine.until(lambda: engine.proven == {a, b})
        assert vllm.loads == [a, b, a, b]


# ---- drift


async def test_what_somebody_unloads_by_hand_is_loaded_again_without_a_word_to_the_gateway(stock: Stock) -> None:
    a, b, _ = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock, limits=ALERT)) as engine:
        engine.hold(a, b)
        await engine.until(lambda: engine.proven == {a, b})
        del vllm.adapters[a]
        await vllm.until(lambda: vllm.loads.count(a) == 2)
        await engine.until(lambda: engine.proven == {a, b})
        assert vllm.loads.count(b) == 1


async def test_what_somebody_loads_by_hand_stays_under_a_name_of_theirs_and_goes_under_ours(stock: Stock) -> None:
    a, b, _ = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock, limits=ALERT)) as engine:
        engine.hold(a)
        await engine.until(lambda: engine.proven == {a})
        vllm.adapters["theirs"] = engine.copies[b].path
        vllm.adapters[b] = engine.copies[b].path
        await vllm.until(lambda: ("unload", b) in vllm.asked)
        await round_trips(engine)
        assert set(vllm.adapters) == {a, "theirs"}
        assert "theirs" not in engine.reconciler.since


async def test_another_adapter_under_one_of_our_names_is_never_served_as_ours(stock: Stock) -> None:
    a, b, _ = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock, limits=ALERT)) as engine:
        vllm.adapters[a] = "/elsewhere/bot"
        vllm.adapters[b] = engine.copies[a].path  # from the store, and yet another version
        await engine.probe.refresh()
        engine.hold(a, b)
        await engine.until(lambda: engine.troubled == {a, b})
        await round_trips(engine)
        assert "/elsewhere/bot" in engine.trouble(a)
        assert "unload it there" in engine.trouble(b)
        assert engine.reconciler.troubles[a].lasting
        assert not engine.proven
        assert not vllm.asked
        assert not vllm.probed
        vllm.adapters.clear()
        await engine.until(lambda: engine.proven == {a, b} and not engine.troubled)


async def test_a_gateway_that_starts_again_proves_what_is_there_and_loads_and_unloads_nothing(stock: Stock) -> None:
    a, b, _ = stock.names
    async with VLLM() as vllm:
        async with kept(Kept(vllm, stock, room=2)) as engine:
            engine.hold(a, b)
            await engine.until(lambda: engine.proven == {a, b})
        async with kept(Kept(vllm, stock, room=2)) as engine:
            assert not engine.proven
            engine.hold(a, b)
            await engine.until(lambda: engine.proven == {a, b})
        assert vllm.asked == [("load", a), ("load", b)]
        assert vllm.probed == [a, b, a, b]


async def test_an_engine_of_another_version_has_to_prove_again_what_it_lists(stock: Stock) -> None:
    (a, *_) = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock)) as engine:
        engine.hold(a)
        await engine.until(lambda: engine.proven == {a})
        life = engine.probe.seen.life
        vllm.version = "0.33.0"
        await engine.probe.refresh()
        assert engine.probe.seen.life > life
        await engine.until(lambda: engine.proven == {a})
        assert vllm.probed == [a, a]


async def test_a_version_that_is_not_told_once_is_still_the_same(stock: Stock) -> None:
    (a, *_) = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock)) as engine:
        engine.hold(a)
        await engine.until(lambda: engine.proven == {a})
        vllm.says["/version"] = (503, error("The engine is currently busy.", "Service Unavailable", 503))
        await round_trips(engine)
        assert engine.probe.seen.version == "0.32.0"
        assert engine.proven == {a}
        assert vllm.probed == [a]


# ---- what must not be loaded, or not be used


async def test_a_damaged_version_is_not_loaded_until_it_is_restored(stock: Stock) -> None:
    a, b, _ = stock.names
    weights = Path(stock.copies[a].path) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    async with VLLM() as vllm, kept(Kept(vllm, stock, limits=ALERT)) as engine:
        engine.hold(a, b)
        await engine.until(lambda: a in engine.troubled and b in engine.proven)
        assert "is damaged" in engine.trouble(a)
        assert "restore its files, or remove the version" in engine.trouble(a)
        assert engine.reconciler.troubles[a].lasting
        assert vllm.loads == [b]
        weights.write_bytes(whole)
        await engine.until(lambda: engine.proven == {a, b})


async def test_what_computes_nan_is_never_used_and_not_asked_twice(stock: Stock) -> None:
    a, b, _ = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock, limits=ALERT)) as engine:
        vllm.poisoned = True
        engine.hold(a)
        await engine.until(lambda: "NaN" in engine.trouble(a))
        vllm.poisoned = False
        engine.hold(a, b)
        await engine.until(lambda: b in engine.proven)
        looks = vllm.listed + 10  # each of them later than the last by as much as what may be tried again would wait
        await vllm.until(lambda: vllm.listed >= looks)
        assert vllm.probed.count(a) == 1
        assert a not in engine.proven
        assert engine.reconciler.troubles[a].lasting


def test_what_may_pass_is_tried_again_within_the_ten_seconds_that_are_promised() -> None:
    limits = Limits()
    delays = [limits.delay(failures, lasting=False) for failures in (1, 2, 3, 4, 5, 100, 10_000)]
    assert delays == [1, 2, 4, 8, 8, 8, 8]
    assert limits.look + 1 < 10
    assert limits.delay(1, lasting=True) == 60


# ---- engines that do not see the store


async def test_an_engine_may_see_the_store_under_another_path(stock: Stock, tmp_path: Path) -> None:
    a, b, _ = stock.names
    mount = tmp_path / "mnt"
    mount.symlink_to(stock.store.root)
    async with VLLM() as vllm:
        for _ in range(2):  # what the gateway before has loaded is ours as well
            engine = Kept(vllm, stock, limits=ALERT)
            engine.mapped = str(mount)
            engine.copies = {
                name: replace(copy, path=copy.path.replace(str(stock.store.root), str(mount)))
                for name, copy in stock.copies.items()
            }
            async with kept(engine):
                engine.hold(a, b)
                await engine.until(lambda: engine.proven == {a, b})  # noqa: B023
        assert vllm.loads == [a, b]
        assert vllm.adapters[a].startswith(f"{mount}/")


async def test_an_engine_that_does_not_see_the_store_says_so_and_both_remedies_are_told(stock: Stock) -> None:
    (a, *_) = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock)) as engine:
        vllm.blind = True
        engine.hold(a)
        await engine.until(lambda: engine.troubled)
        for words in (engine.copies[a].path, "`adapters.store`", "`adapters.from_hub`"):
            assert words in engine.trouble(a)
        assert engine.reconciler.troubles[a].lasting


COMMIT, LATER = "c" * 40, "d" * 40


async def test_an_engine_that_may_fetches_from_the_hub_what_is_there_still(stock: Stock) -> None:
    (a, *_) = stock.names
    async with VLLM() as vllm:
        vllm.blind = True
        vllm.hub = {"org/bot"}
        for _ in range(2):  # after a restart of the gateway it is known again
            engine = Kept(vllm, stock, head={"org/bot": COMMIT}.get)
            engine.copies[a] = replace(stock.copies[a], hub=Hub("org/bot", COMMIT))
            async with kept(engine):
                engine.hold(a)
                await engine.until(lambda: engine.proven == {a})  # noqa: B023
        assert vllm.adapters == {a: "org/bot"}
        assert vllm.loads == [a, a], "from the store, then from the hub"


@pytest.mark.parametrize(
    ("head", "words", "lasting"),
    [(LATER, "main branch of org/bot is at dddddddddddd by now", True), (None, "the hub does not say", False)],
)
async def test_an_engine_is_not_told_to_fetch_what_may_be_another_version(
    stock: Stock, head: str | None, words: str, lasting: bool
) -> None:
    (a, *_) = stock.names
    answers = {"org/bot": head} if head else {}
    async with VLLM() as vllm:
        vllm.blind = True
        vllm.hub = {"org/bot"}
        engine = Kept(vllm, stock, head=answers.get, limits=ALERT)
        engine.copies[a] = replace(stock.copies[a], hub=Hub("org/bot", COMMIT))
        async with kept(engine):
            engine.hold(a)
            await engine.until(lambda: words in engine.trouble(a))
            assert engine.reconciler.troubles[a].lasting is lasting
            assert not vllm.adapters
            answers["org/bot"] = COMMIT
            await engine.until(lambda: engine.proven == {a})


# ---- the engine's places (vllm#47724)


class Seats:
    """The data plane's admission of one engine, whose requests the test plays."""

    def __init__(self, vllm: VLLM, max_loras: int = 2) -> None:
        self.vllm = vllm
        self.admission = Admission(Concurrency(), max_loras)

    @asynccontextmanager
    async def reserve(self, upstream: Upstream, adapter: str) -> AsyncIterator[None]:
        async with self.admission.reserve(adapter):
            yield

    @asynccontextmanager
    async def answer(self, adapter: str) -> AsyncIterator[None]:
        """The engine computes an answer with this adapter, and goes on for as long as this lasts."""
        async with self.admission.reserve(adapter):
            self.vllm.decoding[adapter] += 1
            try:
                yield
            finally:
                self.vllm.decoding[adapter] -= 1


async def test_an_engine_with_the_race_is_sent_no_load_while_all_its_places_compute(stock: Stock) -> None:
    a, b, c = stock.names
    async with VLLM(version="0.25.1") as vllm:
        seats = Seats(vllm)
        async with kept(Kept(vllm, stock, place=seats.reserve)) as engine:
            engine.hold(a, b)
            await engine.until(lambda: engine.proven == {a, b})
            async with seats.answer(a):
                async with seats.answer(b):
                    engine.hold(a, b, c)
                    await round_trips(engine)
                    assert c not in vllm.loads
                await engine.until(lambda: c in engine.proven)
            assert vllm.mixed == 0


async def test_an_engine_without_it_is_sent_a_load_at_any_time_and_asked_for_a_token_in_its_turn(stock: Stock) -> None:
    a, b, c = stock.names
    async with VLLM(version="0.26.0") as vllm:
        seats = Seats(vllm)
        async with kept(Kept(vllm, stock, place=seats.reserve)) as engine:
            engine.hold(a, b)
            await engine.until(lambda: engine.proven == {a, b})
            async with seats.answer(a):
                async with seats.answer(b):
                    engine.hold(a, b, c)
                    await vllm.until(lambda: c in vllm.adapters)
                    await round_trips(engine)
                    assert c not in vllm.probed
                await engine.until(lambda: c in engine.proven)


@pytest.mark.parametrize("version", ["0.25.1", "", "dev"])
async def test_under_traffic_no_answer_on_such_an_engine_can_get_anothers_weights(tmp_path: Path, version: str) -> None:
    stock = Stock(tmp_path, 8)
    chance = random.Random(1)
    async with VLLM(version=version) as vllm:
        seats = Seats(vllm)
        engine = Kept(vllm, stock, place=seats.reserve, room=4)

        async def client() -> None:
            while True:
                if proven := sorted(engine.proven & set(engine.residents)):
                    name = chance.choice(proven)
                    engine.in_use[name] += 1
                    async with seats.answer(name):
                        await asyncio.sleep(chance.uniform(0, 0.01))
                    engine.in_use[name] -= 1
                    engine.reconciler.wake()
                else:
                    await asyncio.sleep(0.005)

        async with kept(engine):
            clients = [asyncio.create_task(client()) for _ in range(4)]
            for number in range(8):
                wanted = (*stock.names[number:], *stock.names[:number])[:4]
                engine.hold(*wanted)
                await engine.until(lambda: engine.proven >= set(wanted), within=6 * LATE)  # noqa: B023
            for task in clients:
                task.cancel()
        assert vllm.mixed == 0
        assert vllm.most <= 4
        assert len(vllm.loads) >= 10


async def test_what_is_wanted_no_more_when_its_place_comes_is_not_loaded(stock: Stock) -> None:
    a, b, c = stock.names
    async with VLLM(version="0.25.1") as vllm:
        seats = Seats(vllm)
        async with kept(Kept(vllm, stock, place=seats.reserve)) as engine:
            engine.hold(a, b)
            await engine.until(lambda: engine.proven == {a, b})
            async with seats.answer(a), seats.answer(b):
                engine.hold(a, b, c)
                await round_trips(engine)
                engine.hold(a, b)
            engine.forget(c)
            await round_trips(engine)
        assert c not in vllm.loads


async def test_a_place_that_is_refused_or_does_not_come_is_asked_for_again(stock: Stock) -> None:
    (a, *_) = stock.names
    tries: list[str] = []

    @asynccontextmanager
    async def place(upstream: Upstream, adapter: str) -> AsyncIterator[None]:
        tries.append(adapter)
        if len(tries) == 1:
            raise Overloaded("The upstream 'gpu' has 256 requests and 512 more are waiting; try again in a moment.")
        if len(tries) == 2:
            await asyncio.Event().wait()
        yield

    async with VLLM() as vllm, kept(Kept(vllm, stock, place=place, limits=replace(QUICK, place=0.1))) as engine:
        engine.hold(a)
        await engine.until(lambda: "more are waiting" in engine.trouble(a))
        await engine.until(lambda: "left it no moment" in engine.trouble(a))
        assert not engine.reconciler.troubles[a].lasting
        await engine.until(lambda: engine.proven == {a} and not engine.troubled)
        assert tries == [a, a, a]
