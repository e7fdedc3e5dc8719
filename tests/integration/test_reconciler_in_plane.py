"""Engines and their reconcilers inside the whole control plane: what only shows when both are there."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

from adapters.files import ADAPTER_FILES
from gateway.controlplane.admin import AdapterAdmin
from gateway.controlplane.desired import removed
from gateway.domain.snapshot import Readiness
from tests.fakes.adapter_corpus import TINY, Craft
from tests.fakes.fake_hub import fake_hub
from tests.fakes.fake_vllm_http import VLLM
from tests.integration.test_control_plane import Shelf, attached, controlled
from tests.patience import LATE


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


async def test_a_full_engine_loses_nothing_when_the_gateway_starts_again(shelf: Shelf) -> None:
    shelf.put("pirate")
    shelf.put("poet")
    async with VLLM(root=str(shelf.base)) as vllm:
        vllm.adapters["theirs"] = "/elsewhere/theirs"
        config = shelf.config(attached(vllm, adapters={"max_cpu_loras": 3}))
        for _ in range(3):
            async with controlled(config) as (_, watch):
                await watch.until(lambda: watch.ready("pirate") and watch.ready("poet"))
        assert len(vllm.asked) == 2, "each was loaded once, and none went"


async def test_a_replica_that_comes_back_is_sent_no_request_for_an_adapter_before_it_has_proven_it(
    shelf: Shelf,
) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as one, VLLM(root=str(shelf.base)) as two:
        async with controlled(shelf.config(attached(one, "one"), attached(two, "two"))) as (plane, watch):
            await watch.until(lambda: watch.readiness("pirate") == [Readiness.READY] * 2)
            version = watch.version("pirate")
            assert version is not None
            await two.stop()
            plane.suspect("two")
            await watch.until(lambda: watch.readiness("pirate") == [Readiness.READY, Readiness.DOWN])
            before = len(watch.seen)
            await two.start()
            two.adapters[version] = next(iter(one.adapters.values()))  # somebody's arguments name it already
            two.poisoned = True
            await watch.until(lambda: watch.readiness("base") == [Readiness.READY] * 2)
            await two.until(lambda: version in two.probed)
            await watch.until(lambda: any("NaN" in row for row in _reasons(plane)))
            for snapshot in watch.seen[before:]:
                ready = [t.upstream for t in snapshot.routes["pirate"].targets if t.readiness is Readiness.READY]
                assert ready == ["one"]


def _reasons(plane: object) -> list[str]:
    observed = plane.observed  # type: ignore[attr-defined]
    return [adapter.reason for adapter in observed.adapters]


@pytest.mark.parametrize(
    ("version", "said", "expected"), [("0.25.1", None, 1), ("0.25.1", 3, 3), ("0.32.0", None, 0), ("0.32.0", 3, 3)]
)
async def test_an_engine_with_the_race_is_not_thought_to_have_more_places_than_vllm_has_by_default(
    shelf: Shelf, version: str, said: int | None, expected: int
) -> None:
    shelf.put("pirate")
    limits = {} if said is None else {"max_loras": said}
    async with VLLM(root=str(shelf.base), version=version) as vllm:
        async with controlled(shelf.config(attached(vllm, adapters=limits))) as (_, watch):
            await watch.until(lambda: watch.ready("pirate"))
            assert watch.now.upstreams["gpu"].max_loras == expected


async def test_an_engine_that_does_not_see_the_store_fetches_from_the_hub_what_is_there_still(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Craft(TINY).write(tmp_path / "draft")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_hub() as hub:
        hub.repository("org/bot", {name: (tmp_path / "draft" / name).read_bytes() for name in ADAPTER_FILES})
        async with VLLM(root=str(shelf.base)) as vllm:
            vllm.blind = True
            vllm.hub = {"org/bot"}
            config = shelf.config(attached(vllm, adapters={"from_hub": True}))
            async with controlled(config, HF_ENDPOINT=hub.url) as (plane, watch):
                admin = AdapterAdmin(plane, config)
                await admin.start()
                await watch.until(lambda: watch.ready("base"))
                await admin.add("bot", "hf://org/bot", digest=None, promote=False, settings={})
                await watch.until(lambda: watch.ready("bot"), within=60)
                assert list(vllm.adapters.values()) == ["org/bot"]
                await admin.close()
            hub.commit = "d" * 40
            vllm.adapters.clear()
            async with controlled(config, HF_ENDPOINT=hub.url) as (plane, watch):
                await watch.until(lambda: any("main branch of org/bot is at" in reason for reason in _reasons(plane)))
                assert not vllm.adapters


async def test_a_content_that_comes_back_while_it_is_removed_is_taken_up_anew(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.put("pirate")
    shutil.copytree(shelf.sources / "pirate", tmp_path / "first")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        first = watch.version("pirate")
        assert first is not None
        shelf.put("pirate")
        await watch.until(lambda: watch.version("pirate") != first)
        record = plane.registry.records["pirate"]
        digest = next(v.digest for v in record.versions if v.version == first.partition("@")[2])
        disk = threading.Event()  # it is slow, so that the folder's turn comes while the version is still there
        assert plane._storage is not None
        busy = asyncio.create_task(plane._storage.call(disk.wait, 10 * LATE))
        going = asyncio.create_task(plane.registry.move("pirate", lambda now: now and removed(now, digest)))
        shelf.remove("pirate")
        (tmp_path / "first").rename(shelf.sources / "pirate")
        async with asyncio.timeout(6 * LATE):
            while not plane.registry._moving._waiters:
                await asyncio.sleep(0.01)
        disk.set()
        await busy
        await going
        await watch.until(lambda: watch.version("pirate") == first)
        assert "failed and starts again" not in caplog.text
