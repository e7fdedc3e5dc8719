"""The commands on a whole gateway in front of a vLLM: what is typed happens on the engine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests import http
from tests.fakes.adapter_corpus import TINY, Craft, factor, write_base
from tests.fakes.fake_vllm_http import VLLM
from tests.gateway import ADMIN_KEY, CLIENT_KEY, Running, running_gateway
from tests.patience import LATE
from tests.unit.commands import gateway_here

FIRST = factor("model.layers.0.self_attn.q_proj", "A")


class Talking(VLLM):
    """It says who it is."""

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/chat/completions":
            return super()._answer(method, path, body)
        whole = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        said = {"index": 0, "delta": {"content": f"I am {body['model']}."}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        events = [{**whole, "choices": [said]}, {**whole, "choices": [], "usage": usage}]
        return 200, "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


class Place:
    """A gateway that attaches to a vLLM, and drafts of adapters."""

    def __init__(self, folder: Path, vllm: VLLM) -> None:
        self.folder = folder
        self.vllm = vllm
        self.base = write_base(folder / "base")
        self.gateway: Running

    def draft(self, name: str, number: int, change: Callable[[Craft], None] = lambda craft: None) -> Path:
        """An adapter's folder; each number another content."""
        craft = Craft(TINY)
        craft.poke(FIRST, number / 100, index=0)
        change(craft)
        folder = self.folder / "drafts" / f"{name}-{number}"
        craft.write(folder)
        return folder

    async def typed(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        environ = {"GATEWAY_URL": self.gateway.url, "GATEWAY_ADMIN_KEY": ADMIN_KEY}
        return await asyncio.to_thread(gateway_here, "adapters", *arguments, env=environ)

    async def said(self, *arguments: object) -> Any:
        """What a command prints as JSON; it must not fail."""
        done = await self.typed(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def press(self, button: str, model: str) -> int:
        async with http.client(headers={"authorization": f"Bearer {CLIENT_KEY}"}, timeout=LATE) as client:
            answer = await client.post(f"{self.gateway.url}/models/{button}", json={"model": model})
        return answer.status_code

    async def marked(self) -> dict[str, str]:
        """Which adapters Open WebUI would mark as loaded."""
        async with http.client(headers={"authorization": f"Bearer {CLIENT_KEY}"}) as client:
            page = (await client.get(f"{self.gateway.url}/models")).json()
        return {model["id"]: model["status"]["value"] for model in page["data"] if "parent" in model}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with Talking() as vllm:
        place = Place(tmp_path, vllm)
        vllm.root = str(place.base)
        config = {
            "auth": {"admin_key": ADMIN_KEY, "keys": [{"name": "webui", "key": CLIENT_KEY, "allow": ["adapters"]}]},
            "upstreams": [{"name": "box", "kind": "vllm", "base_url": vllm.url}],
        }
        async with running_gateway(config, tmp_path) as place.gateway:
            yield place


async def test_an_adapters_life(place):
    one = await place.said("add", "pirate", place.draft("pirate", 1))
    assert (one["name"], one["phase"], one["current"]) == ("pirate", "Ready", True)
    assert place.vllm.loads == [f"pirate@{one['version']}"]
    two = await place.said("add", "pirate", place.draft("pirate", 2))
    assert (two["phase"], two["current"], two["weight"]) == ("Ready", False, 0)

    moved = await place.said("promote", "pirate", two["version"])
    assert (moved["current"], moved["history"]) == (two["version"], [one["version"]])
    back = await place.said("rollback", "pirate")
    assert (back["current"], back["next"]) == (one["version"], None)
    split = await place.said("canary", "pirate", two["version"], "--weight", 10)
    assert split["canaries"] == [{"version": two["version"], "weight": 10}]
    rows = (await place.said("list"))["data"]
    assert {row["version"]: row["weight"] for row in rows} == {one["version"]: 90, two["version"]: 10}

    left = await place.said("remove", f"pirate@{one['version']}")
    assert (left["current"], left["canaries"]) == (two["version"], [])
    assert await place.said("remove", "pirate") == {"name": "pirate", "deleted": True}
    assert "pirate" not in await place.marked()
    # Nobody asked for them meanwhile; the engine lets go of them after a grace (test_control_plane.py).
    assert {row["phase"] for row in (await place.said("list"))["data"]} <= {"Draining"}


async def test_compare_asks_both_versions_and_no_other(place):
    versions = [(await place.said("add", "pirate", place.draft("pirate", number)))["version"] for number in (1, 2)]
    (place.folder / "prompts").write_text("Who are you?\nAnd you?\n")
    environ = {"GATEWAY_URL": place.gateway.url, "GATEWAY_KEY": CLIENT_KEY}
    arguments = ("adapters", "compare", "pirate", *versions, "--prompts", place.folder / "prompts", "--json")
    done = await asyncio.to_thread(gateway_here, *arguments, env=environ)
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    for prompt in document["prompts"]:
        assert [prompt[side]["text"] for side in "ab"] == [f"I am pirate@{version}." for version in versions]
    assert document["summary"]["b"]["prompt_tokens"] == 6
    assert document["summary"]["b"]["completion_tokens"] == 8


async def test_an_archive_and_its_folder_are_one_version(place):
    folder = place.draft("pirate", 1)
    with tarfile.open(place.folder / "pirate.tar.gz", "w:gz") as archive:
        archive.add(folder, "pirate")
    one = await place.said("add", "pirate", place.folder / "pirate.tar.gz")
    two = await place.said("add", "pirate", folder)
    assert one["version"] == two["version"]
    assert place.vllm.loads == [f"pirate@{one['version']}"]
    assert list((place.folder / "store" / "uploads").iterdir()) == []


async def test_what_vllm_would_not_serve_rightly_is_refused_with_reason_and_remedy(place):
    def high(craft: Craft) -> None:
        craft.config["r"] = 32
        for name in TINY.modules():
            craft.factors(name, 64)

    done = await place.typed("add", "large", place.draft("large", 1, high), "--json")
    assert done.returncode == 1
    failed = json.loads(done.stdout)
    assert (failed["name"], failed["phase"]) == ("large", "Failed")
    assert failed["reason"]
    assert failed["reason"] in done.stderr
    assert place.vllm.loads == []
    (place.folder / "junk.zip").write_bytes(b"PK\x03\x04 and no more")
    done = await place.typed("add", "junk", place.folder / "junk.zip")
    assert done.returncode == 1
    assert "junk: " in done.stderr
    assert list((place.folder / "store" / "uploads").iterdir()) == []


async def test_the_buttons_eject_and_load(place):
    version = (await place.said("add", "pirate", place.draft("pirate", 1)))["version"]
    both = {"pirate", f"pirate@{version}"}
    assert (await place.marked())["pirate"] == "loaded"
    assert await place.press("unload", "pirate") == 200
    assert (await place.marked())["pirate"] == "unloaded", "Open WebUI looks at once"
    await place.vllm.until(lambda: not place.vllm.adapters)
    assert await place.press("load", "pirate") == 200
    assert set(place.vllm.adapters) == {f"pirate@{version}"}
    marks = await place.marked()
    assert {name: marks[name] for name in both & marks.keys()} == dict.fromkeys(both & marks.keys(), "loaded")
    await place.typed("set", "pirate", "--pin")
    assert await place.press("unload", "pirate") == 409
    assert await place.press("unload", "base") == 400


async def test_a_version_that_an_engine_refuses_is_never_promoted(place):
    one = (await place.said("add", "pirate", place.draft("pirate", 1)))["version"]
    place.vllm.poisoned = True
    done = await place.typed("add", "pirate", place.draft("pirate", 2), "--promote", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["phase"] == "Failed"
    assert (await place.said("show", "pirate"))["current"] == one
