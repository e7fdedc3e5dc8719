"""The control plane over real servers, real processes and real folders: what it publishes, and what engines are asked.

A data plane is played by `Watch`: it takes the snapshots and says which adapters have requests.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.controlplane.admin import AdapterAdmin
from gateway.controlplane.config import Config
from gateway.controlplane.plane import ControlPlane
from gateway.domain.snapshot import EMPTY, Readiness, Route, Snapshot, Upstream
from tests.fakes.adapter_corpus import TINY, Craft, factor, write_base
from tests.fakes.fake_vllm_http import VLLM
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.patience import LATE, near

GRACE = 0.3
FAKE_VLLM = (sys.executable, str(Path(__file__).parents[1] / "fakes" / "fake_vllm.py"))
FIRST = factor("model.layers.0.self_attn.q_proj", "A")


class Watch:
    """What a data plane sees and knows.  `seen`: every snapshot; `phases`: (adapter, version) → phase, as the metrics
    have it; `requests`: how many each adapter has, on whichever upstream; `wanted`: since when some wait for it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.seen: list[Snapshot] = [EMPTY]
        self.requests: Counter[str] = Counter()
        self.last_asked: dict[str, float] = {}
        self.wanted: dict[str, float] = {}
        self.phases: dict[tuple[str, str], str] = {}
        self.up: dict[str, bool] = {}
        self.restarts = 0
        self.break_next = False
        self._happened = asyncio.Event()

    @property
    def now(self) -> Snapshot:
        return self.seen[-1]

    def users(self, upstream: str, adapter: str) -> int:
        return self.requests[adapter]

    def wanted_since(self, adapter: str) -> float | None:
        return self.wanted.get(adapter)

    @asynccontextmanager
    async def reserve(self, upstream: Upstream, adapter: str) -> AsyncIterator[None]:
        yield

    def publish(self, snapshot: Snapshot) -> None:
        if self.break_next:
            self.break_next = False
            raise RuntimeError("the data plane stumbles")
        self.seen.append(snapshot)
        self._happened.set()

    def upstream_up(self, upstream: str, up: bool) -> None:
        self.up[upstream] = up
        self._happened.set()

    def adapter_state(self, name: str, version: str, phase: str) -> None:
        self.phases.pop((name, version), None)
        if phase:
            self.phases[name, version] = phase
        self._happened.set()

    def engine_state(self, name: str, state: str) -> None:
        self._happened.set()

    def engine_restart(self, name: str) -> None:
        self.restarts += 1

    async def until(self, condition: Callable[[], object], within: float = 3 * LATE) -> None:
        async with asyncio.timeout(within):
            while not condition():
                self._happened.clear()
                await self._happened.wait()

    def readiness(self, model: str) -> list[Readiness]:
        route = self.now.routes.get(model, Route(model, ()))
        return [target.readiness for target in route.targets]

    def ready(self, model: str) -> bool:
        return Readiness.READY in self.readiness(model)

    def version(self, model: str) -> str | None:
        """What the plain name points to."""
        return self.now.routes[model].targets[0].adapter if model in self.now.routes else None


class Shelf:
    """A base model, a folder of sources, and the gateway's store."""

    def __init__(self, folder: Path) -> None:
        self.base = write_base(folder / "base")
        self.store = folder / "store"
        self.sources = folder / "adapters.d"
        self.sources.mkdir()
        self._drafts = folder / "drafts"
        self._number = 0

    def put(self, name: str, change: Callable[[Craft], None] = lambda craft: None) -> None:
        """A new content, whole, in place of any other; no two are alike."""
        self._number += 1
        craft = Craft(TINY)
        craft.poke(FIRST, self._number / 100, index=0)
        change(craft)
        draft = self._drafts / str(self._number)
        craft.write(draft)
        self.remove(name)
        draft.rename(self.sources / name)

    def remove(self, name: str) -> None:
        if (self.sources / name).exists():
            shutil.rmtree(self.sources / name)

    def config(self, *upstreams: Mapping[str, Any]) -> Config:
        adapters = {"store": str(self.store), "sources": [str(self.sources)], "poll_interval": 0.05}
        storage = {"url": f"sqlite:///{self.store.parent}/gateway.db"}
        return Config.model_validate({"upstreams": upstreams, "adapters": adapters, "storage": storage})


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@asynccontextmanager
async def controlled(config: Config, **environ: str) -> AsyncIterator[tuple[ControlPlane, Watch]]:
    """A running control plane; fails if anything of it outlives it."""
    before = asyncio.all_tasks()
    watch = Watch(config)
    plane = ControlPlane(
        config, {**os.environ, **environ}, publish=watch.publish, traffic=watch, metrics=watch, grace=GRACE
    )
    await plane.start()
    try:
        yield plane, watch
    finally:
        await plane.stop()
    ours = asyncio.all_tasks() - before
    fakes = {task for task in ours if "_serve" in repr(task.get_coro())}  # end when they see that we have hung up
    assert ours <= fakes
    if fakes:
        await asyncio.wait(fakes, timeout=LATE)


def attached(vllm: VLLM, name: str = "gpu", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "vllm", "base_url": vllm.url, "poll_interval": 1, **more}


def own(shelf: Shelf, **more: Any) -> dict[str, Any]:
    engine = {"model": str(shelf.base), "served_name": "base", "command": FAKE_VLLM, **more}
    return {"name": "local", "kind": "vllm", "poll_interval": 1, "engine": engine}


async def rows(plane: ControlPlane, watch: Watch) -> list[dict[str, Any]]:
    return await AdapterAdmin(plane, watch.config).rows()


def by_name(rows: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["name"] == name]


# ---- the life of an adapter


async def test_a_folder_that_is_there_at_the_start_is_served(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        (row,) = await rows(plane, watch)
        assert (row["name"], row["phase"], row["upstreams"], row["current"]) == ("pirate", "Ready", ["gpu"], True)
        assert watch.version("pirate") == f"pirate@{row['version']}" == vllm.loads[0]
        path = vllm.adapters[vllm.loads[0]]
        assert Path(path).is_absolute()
        assert row["digest"] in path
        assert b'"parent":"base"' in watch.now.cards["pirate"]
        assert watch.phases == {("pirate", row["version"]): "Ready"}


async def test_a_folder_that_appears_is_served_without_a_restart(shelf: Shelf) -> None:
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (_, watch):
        await watch.until(lambda: watch.ready("base"))
        shelf.put("pirate")
        await watch.until(lambda: watch.ready("pirate"))
        assert "pirate" in watch.now.cards


async def test_a_change_moves_the_name_without_a_gap_and_the_version_before_stays_for_going_back(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        old = watch.version("pirate")
        assert old is not None
        start = len(watch.seen)
        shelf.put("pirate")
        await watch.until(lambda: watch.version("pirate") != old)
        for snapshot in watch.seen[start:]:
            assert snapshot.routes["pirate"].targets[0].readiness is Readiness.READY
            assert "pirate" in snapshot.cards
        assert watch.ready(old), "it can be asked for by its exact name"
        assert vllm.asked == [("load", old), ("load", watch.version("pirate"))]
        assert [row["phase"] for row in await rows(plane, watch)] == ["Ready", "Ready"]


async def test_a_version_that_is_needed_no_more_is_unloaded_after_its_last_request(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        first = watch.version("pirate")
        assert first is not None
        watch.requests[first] = 1
        for _ in range(2):
            before = watch.version("pirate")
            shelf.put("pirate")
            await watch.until(lambda before=before: watch.version("pirate") != before)
        asked = vllm.listed
        await vllm.until(lambda: vllm.listed > asked)
        assert first in vllm.adapters, "unloaded while a request used it"
        del watch.requests[first]
        plane.idle("gpu", first)
        await watch.until(lambda: watch.phases.get(("pirate", first.partition("@")[2])) == "Unloaded")
        assert vllm.asked[-1] == ("unload", first)


async def test_an_old_version_that_somebody_loads_by_hand_stays_as_long_as_one_that_was_asked_for(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        oldest = watch.version("pirate")
        assert oldest is not None
        for _ in range(2):
            before = watch.version("pirate")
            shelf.put("pirate")
            await watch.until(lambda before=before: watch.version("pirate") != before)
        name, _, version = oldest.partition("@")
        await watch.until(lambda: watch.phases[name, version] == "Unloaded")
        await AdapterAdmin(plane, watch.config).load(name, version)
        plane.advance()
        assert watch.phases[name, version] == "Ready"
        await watch.until(lambda: watch.phases[name, version] == "Unloaded")
        assert vllm.asked[-1] == ("unload", oldest)


async def test_a_folder_that_goes_takes_its_name_away_at_once_and_its_weights_after_the_last_request(
    shelf: Shelf,
) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (_, watch):
        await watch.until(lambda: watch.ready("pirate"))
        name = watch.version("pirate")
        assert name is not None
        watch.requests[name] = 1
        shelf.remove("pirate")
        await watch.until(lambda: "pirate" not in watch.now.routes)
        assert "pirate" not in watch.now.cards
        asked = vllm.listed
        await vllm.until(lambda: vllm.listed > asked)
        assert name in vllm.adapters
        watch.requests[name] = 0
        await vllm.until(lambda: not vllm.adapters)
        assert vllm.asked[-1] == ("unload", name)


async def test_content_that_comes_back_is_not_loaded_twice(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put("pirate")
    shutil.copytree(shelf.sources / "pirate", tmp_path / "kept")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (_, watch):
        await watch.until(lambda: watch.ready("pirate"))
        first = watch.version("pirate")
        assert first is not None
        watch.requests[first] = 1  # it stays loaded
        shelf.put("pirate")
        await watch.until(lambda: watch.version("pirate") != first)
        shelf.remove("pirate")
        (tmp_path / "kept").rename(shelf.sources / "pirate")
        await watch.until(lambda: watch.version("pirate") == first)
        assert watch.ready("pirate")
        assert Counter(vllm.loads)[first] == 1


async def test_an_adapter_with_nan_is_refused_and_never_reaches_an_engine(shelf: Shelf) -> None:
    shelf.put("good")
    shelf.put("bad", lambda craft: craft.poke(FIRST, float("nan")))
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("good") and watch.phases.get(("bad", "")) == "Failed")
        (row,) = by_name(await rows(plane, watch), "bad")
        assert "holds nan" in row["reason"]
        assert "bad" not in watch.now.routes
        assert vllm.loads == [watch.version("good")]
        assert len(list((shelf.store / "sha256").iterdir())) == 1, "what is refused is not kept"


async def test_a_bad_change_leaves_the_version_before_it_in_service(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        version, published = watch.version("pirate"), len(watch.seen)
        shelf.put("pirate", lambda craft: craft.config.update(use_dora=True))
        await watch.until(lambda: watch.phases.get(("pirate", "")) == "Failed")
        assert len(watch.seen) == published, "nothing that serves has changed"
        assert watch.ready("pirate")
        assert watch.version("pirate") == version
        assert [row["phase"] for row in await rows(plane, watch)] == ["Ready", "Failed"]
        shelf.put("pirate")
        await watch.until(lambda: watch.version("pirate") != version)
        assert ("pirate", "") not in watch.phases


async def test_an_adapter_for_another_base_is_refused_where_its_shapes_do_not_fit(shelf: Shelf) -> None:
    shelf.put("wide", lambda craft: craft.factors("model.layers.0.self_attn.q_proj", 8, (128, 128)))
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (_, watch):
        await watch.until(lambda: watch.phases.get(("wide", "")) == "Failed")
        assert vllm.loads == []


async def test_shapes_are_compared_with_a_base_model_that_the_engine_has_from_the_hub(
    shelf: Shelf, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0f" * 20)
    (repository / "snapshots").mkdir()
    shelf.base.rename(repository / "snapshots" / ("0f" * 20))
    shelf.put("wide", lambda craft: craft.factors("model.layers.0.self_attn.q_proj", 8, (128, 128)))
    shelf.put("right")
    async with VLLM(root="somebody/tiny") as vllm:
        config = shelf.config(attached(vllm))
        async with controlled(config, HF_HUB_CACHE=str(tmp_path / "hub")) as (_, watch):
            await watch.until(lambda: watch.ready("right") and watch.phases.get(("wide", "")) == "Failed")
            assert vllm.loads == [watch.version("right")]


async def test_an_adapter_waits_for_an_engine_to_be_checked_against(shelf: Shelf) -> None:
    shelf.put("pirate")
    vllm = VLLM(root=str(shelf.base))
    async with vllm:
        config = shelf.config(attached(vllm))
    async with controlled(config) as (plane, watch):
        await watch.until(lambda: watch.phases.get(("pirate", "")) == "Pending")
        assert "waits for an engine" in (await rows(plane, watch))[0]["reason"]
        async with vllm:
            await watch.until(lambda: watch.ready("pirate"))
            assert ("pirate", "") not in watch.phases


async def test_an_engine_that_comes_back_with_another_base_model_gets_no_adapter_that_does_not_fit(
    shelf: Shelf, tmp_path: Path
) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        await vllm.stop()
        vllm.root = str(write_base(tmp_path / "other", replace(TINY, hidden=128, name="other")))
        await vllm.start()
        await watch.until(lambda: "Failed" in watch.phases.values())
        assert watch.readiness("pirate") == [], "it exists, and nobody can serve it"
        assert "pirate" not in watch.now.cards
        assert len(vllm.loads) == 1, "it was sent what was meant for another base model"
        assert [row["phase"] for row in await rows(plane, watch)] == ["Failed"]


async def test_a_folder_that_stays_incomplete_is_explained(shelf: Shelf) -> None:
    def pickle(folder: Path) -> None:
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")

    shelf.put("old", lambda craft: setattr(craft, "after", pickle))
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.phases.get(("old", "")) == "Pending")
        await watch.until(lambda: watch.phases.get(("old", "")) == "Failed")
        assert "pickle" in (await rows(plane, watch))[0]["reason"]
        assert vllm.loads == []


async def test_an_adapter_cannot_take_the_base_models_name(shelf: Shelf) -> None:
    shelf.put("base")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: "Failed" in watch.phases.values())
        assert "belongs to a model" in (await rows(plane, watch))[0]["reason"]
        assert watch.version("base") is None
        shelf.put("pirate")
        await watch.until(lambda: watch.ready("pirate"))
        assert vllm.loads == [watch.version("pirate")]


# ---- engines that somebody else runs


async def test_an_engine_that_restarts_gets_its_adapters_again(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        await vllm.stop()
        plane.suspect("gpu")
        await watch.until(lambda: watch.readiness("pirate") == [Readiness.DOWN])
        assert not watch.up["gpu"]
        await vllm.start()
        await watch.until(lambda: watch.ready("pirate"))
        assert vllm.loads == [watch.version("pirate")] * 2


async def test_an_adapter_that_was_unloaded_by_hand_is_loaded_again(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        vllm.adapters.clear()
        plane.suspect("gpu")
        await watch.until(lambda: watch.readiness("pirate") == [Readiness.LOADING])
        await watch.until(lambda: watch.ready("pirate"))


async def test_adapters_of_others_are_offered_and_left_alone(shelf: Shelf) -> None:
    async with VLLM(root=str(shelf.base)) as vllm:
        vllm.adapters["theirs"] = "/elsewhere/theirs"
        vllm.adapters["pirate@0123456789ab"] = "/elsewhere/pirate"
        async with controlled(shelf.config(attached(vllm))) as (_, watch):
            shelf.put("pirate")
            await watch.until(lambda: watch.ready("pirate") and watch.ready("theirs"))
            shelf.remove("pirate")
            await vllm.until(lambda: ("unload", vllm.loads[0]) in vllm.asked)
            assert set(vllm.adapters) == {"theirs", "pirate@0123456789ab"}


async def test_what_an_earlier_gateway_left_in_the_engine_is_cleared_away(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm:
        async with controlled(shelf.config(attached(vllm))) as (_, watch):
            await watch.until(lambda: watch.ready("pirate"))
        shelf.put("pirate")
        async with controlled(shelf.config(attached(vllm))) as (_, watch):
            await watch.until(lambda: watch.ready("pirate"))
            await vllm.until(lambda: set(vllm.adapters) == {watch.version("pirate")})


async def test_an_engine_that_cannot_read_the_store_is_told_apart(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm:
        vllm.blind = True
        async with controlled(shelf.config(attached(vllm))) as (plane, watch):
            await watch.until(lambda: "Failed" in watch.phases.values())
            (row,) = await rows(plane, watch)
            assert "must see the adapter store under this very path" in row["reason"]
            assert watch.readiness("pirate") == [Readiness.DOWN]
            assert "pirate" not in watch.now.cards
            await vllm.stop()
            await watch.until(lambda: not watch.up["gpu"])
            vllm.blind = False
            await vllm.start()
            await watch.until(lambda: watch.ready("pirate"))


async def test_an_engine_that_refuses_a_new_version_keeps_the_old_one(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        version = watch.version("pirate")
        vllm.refuses = "LoRA rank 64 is greater than max_lora_rank 16."
        shelf.put("pirate")
        await watch.until(lambda: "Failed" in watch.phases.values())
        failed = next(row for row in await rows(plane, watch) if row["phase"] == "Failed")
        assert failed["reason"] == "gpu: the engine refuses it: LoRA rank 64 is greater than max_lora_rank 16."
        assert watch.version("pirate") == version
        assert watch.ready("pirate")


async def test_a_load_that_did_not_happen_is_tried_again_whatever_the_engine_said(shelf: Shelf) -> None:
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("base"))
        vllm.forgets = 1
        shelf.put("pirate")
        await watch.until(lambda: any("does not list it" in a.reason for a in plane.observed.adapters))
        assert watch.readiness("pirate") == [Readiness.LOADING]
        await watch.until(lambda: watch.ready("pirate"))
        assert len(vllm.loads) == 2


async def test_every_engine_gets_the_adapter_and_the_name_moves_when_all_have_it(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as one, VLLM(root=str(shelf.base)) as two:
        config = shelf.config(attached(one, "one"), attached(two, "two"))
        async with controlled(config) as (_, watch):
            await watch.until(lambda: watch.readiness("pirate") == [Readiness.READY] * 2)
            old, start = watch.version("pirate"), len(watch.seen)
            shelf.put("pirate")
            await watch.until(lambda: watch.version("pirate") != old)
            for snapshot in watch.seen[start:]:
                targets = snapshot.routes["pirate"].targets
                assert [target.readiness for target in targets] == [Readiness.READY] * 2
                assert len({target.adapter for target in targets}) == 1, "one name, two versions at once"


# ---- engines of our own


async def test_an_engine_of_our_own_is_made_for_its_adapters_and_loads_them(shelf: Shelf) -> None:
    def wide(craft: Craft) -> None:
        craft.config["r"] = 32
        for module in TINY.modules():
            craft.factors(module, 32)

    shelf.put("wide", wide)
    shelf.put("pirate")
    async with controlled(shelf.config(own(shelf))) as (plane, watch):
        assert len(watch.seen) == 2, "a first snapshot is there when it has started, and no other"
        assert watch.readiness("base") == [Readiness.LOADING]
        assert watch.readiness("pirate") == [Readiness.LOADING]
        await watch.until(lambda: watch.ready("base") and watch.ready("wide") and watch.ready("pirate"))
        (row,) = plane.upstreams()
        assert row["engine"] == {"model": str(shelf.base), "max_lora_rank": 32, "restarts": 0}
        assert row["state"] == "up"
        assert {"base", "wide", "pirate"} <= set(row["models"])
        assert watch.now.upstreams["local"].port


async def test_an_engine_of_our_own_that_is_killed_comes_back_with_its_adapters(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with controlled(shelf.config(own(shelf))) as (_, watch):
        await watch.until(lambda: watch.ready("pirate"))
        version, port = watch.version("pirate"), watch.now.upstreams["local"].port
        start = len(watch.seen)
        _api_server().send_signal(signal.SIGKILL)
        await watch.until(lambda: not watch.ready("pirate"))
        await watch.until(lambda: watch.ready("pirate"))
        assert watch.restarts == 1
        assert watch.version("pirate") == version
        assert watch.now.upstreams["local"].port != port
        for snapshot in watch.seen[start:]:
            assert {"base", "pirate"} <= set(snapshot.cards), "a restart is a wait, not a loss"


def _api_server() -> psutil.Process:
    """The fake vLLM below us whose children are its engine core and worker."""
    fakes = [p for p in psutil.Process().children(recursive=True) if FAKE_VLLM[1] in p.cmdline()[:2]]
    (server,) = (fake for fake in fakes if len(fake.children(recursive=True)) == 2)
    return server


async def test_an_engine_that_has_failed_is_told_and_the_others_go_on(shelf: Shelf) -> None:
    broken = own(shelf, command=["/nonexistent/vllm"])
    async with OpenAIUpstream() as vendor:
        other = {"name": "vendor", "kind": "openai", "base_url": vendor.url}
        async with controlled(shelf.config(broken, other)) as (plane, watch):
            await watch.until(lambda: watch.ready("m") and plane.upstreams()[0]["state"] == "failed")
            assert watch.readiness("base") == [Readiness.DOWN]
            assert "/nonexistent/vllm" in plane.upstreams()[0]["message"]
            assert "/nonexistent" not in watch.now.routes["base"].targets[0].note


# ---- upstreams


async def test_an_upstream_that_goes_and_comes_back_is_followed(shelf: Shelf) -> None:
    async with VLLM(root=str(shelf.base)) as vllm, OpenAIUpstream() as vendor:
        other = {"name": "vendor", "kind": "openai", "base_url": vendor.url}
        async with controlled(shelf.config(attached(vllm, hide_after=1), other)) as (plane, watch):
            await watch.until(lambda: watch.ready("base") and watch.ready("m"))
            await vllm.stop()
            plane.suspect("gpu")
            await watch.until(lambda: watch.readiness("base") == [Readiness.DOWN])
            assert list(watch.now.cards) == ["base", "m"]
            await watch.until(lambda: list(watch.now.cards) == ["m"])
            assert watch.ready("m")
            assert "base" in watch.now.routes, "asked for, it is not there now; it does exist"
            assert (
                "did not answer" in plane.upstreams()[0]["message"] or vllm.url[:-3] in plane.upstreams()[0]["message"]
            )
            await vllm.start()
            await watch.until(lambda: watch.ready("base"))


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [(401, "up", "mend its api_key"), (404, "up", "`models`"), (429, "up", "429"), (503, "down", "503")],
)
async def test_an_upstream_without_a_list_says_why(shelf: Shelf, status: int, state: str, words: str) -> None:
    async with VLLM() as vllm:
        vllm.status = status
        async with controlled(shelf.config(attached(vllm))) as (plane, watch):
            await watch.until(lambda: plane.upstreams()[0]["message"])
            assert plane.upstreams()[0]["state"] == state
            assert words in plane.upstreams()[0]["message"]


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        pytest.param((200, {"models": []}), "up", "cannot be read", id="no list"),
        pytest.param((200, "<html>welcome</html>"), "up", "cannot be read", id="a page"),
        pytest.param((302, ""), "up", "302", id="a redirect"),
        pytest.param((200, "[" * 200_000), "up", "cannot be read", id="depth"),
        pytest.param((200, " " * (9 << 20)), "down", "more than 8 MiB", id="size"),
    ],
)
async def test_an_upstream_that_answers_nonsense_is_told_apart_and_harms_nobody(
    shelf: Shelf, answer: tuple[int, Any], state: str, words: str
) -> None:
    async with VLLM() as odd, VLLM(base="good") as good:
        odd.says["/v1/models"] = answer
        async with controlled(shelf.config(attached(odd, "odd"), attached(good))) as (plane, watch):
            await watch.until(lambda: watch.ready("good") and plane.upstreams()[0]["message"])
            assert plane.upstreams()[0]["state"] == state
            assert words in plane.upstreams()[0]["message"]


async def test_a_list_of_hostile_names_is_bounded(shelf: Shelf) -> None:
    names = ["fine", "a\nb", "\x1b[31mred", "x" * 257, *(f"m{number}" for number in range(20_000))]
    async with VLLM() as vllm:
        vllm.says["/v1/models"] = (200, {"data": [{"id": name} for name in names]})
        async with controlled(shelf.config(attached(vllm))) as (_, watch):
            await watch.until(lambda: watch.ready("fine"))
            assert len(watch.now.routes) == 5000
            assert all(name.isprintable() and len(name) <= 256 for name in watch.now.routes)


async def test_a_list_that_says_nothing_new_publishes_nothing(shelf: Shelf) -> None:
    shelf.put("pirate")
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("pirate"))
        published, asked = len(watch.seen), vllm.listed
        plane.suspect("gpu")
        await vllm.until(lambda: vllm.listed >= asked + 2)
        assert len(watch.seen) == published


async def test_many_complaints_are_a_few_questions(shelf: Shelf) -> None:
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        await watch.until(lambda: watch.ready("base"))
        loop, asked = asyncio.get_running_loop(), vllm.listed
        began = loop.time()
        while vllm.listed < asked + 3:
            plane.suspect("gpu")
            await asyncio.sleep(0)
        assert near(loop.time() - began, 0.5), "a quarter of a second between two"


async def test_a_stumble_is_logged_and_the_next_snapshot_comes(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (_, watch):
        await watch.until(lambda: watch.ready("base"))
        watch.break_next = True
        shelf.put("pirate")
        await watch.until(lambda: watch.ready("pirate"))
        assert "the publisher failed and starts again" in caplog.text
