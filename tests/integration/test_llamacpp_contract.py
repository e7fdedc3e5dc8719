"""What Open WebUI's buttons do on a connection of the kind "llama.cpp": the requests that its backend sends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
import pytest

from tests.integration.administration import BUTTONS, CHAT, PIRATES, Administered, administered, with_adapter


@pytest.fixture
async def gateway(tmp_path: Path):
    async with administered(tmp_path) as running:
        yield running


async def press(gateway: Administered, button: str, model: str, key: str = BUTTONS) -> httpx2.Response:
    async with gateway.client(key) as client:
        return await client.post(f"/models/{button}", json={"model": model, "instance_id": model})


def said(answer: httpx2.Response, status: int) -> str:
    """What Open WebUI shows: it looks for detail.error.message, and puts the whole answer into detail."""
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


def phases(gateway: Administered, name: str) -> list[str]:
    return [row["phase"] for row in gateway.adapters._page(name)["versions"]]


async def test_the_list_is_that_of_v1_with_the_status(gateway):
    with_adapter(gateway, "pirate", b"1")
    async with gateway.client(CHAT) as client:
        listed = await client.get("/models")
        assert listed.json() == (await client.get("/v1/models")).json()
    assert {model["id"]: model["status"]["value"] for model in listed.json()["data"]} == {
        "smollm2": "loaded", "pirate": "loaded"
    }  # fmt: skip


async def test_eject_unloads_all_versions_of_the_name_and_load_brings_the_current_one_back(gateway):
    one, two = with_adapter(gateway, "pirate", b"1", b"2")
    ejected = await press(gateway, "unload", "pirate")
    assert (ejected.status_code, ejected.json()) == (200, {"success": True})
    assert phases(gateway, "pirate") == ["Unloaded", "Unloaded"]
    loaded = await press(gateway, "load", "pirate")
    assert (loaded.status_code, loaded.json()) == (200, {"success": True})
    assert phases(gateway, "pirate") == ["Ready", "Unloaded"]
    assert gateway.adapters.asked == [f"pirate@{one}"]
    gateway.offer("pirate", f"pirate@{two}")
    await press(gateway, "load", f"pirate@{two}")
    assert gateway.adapters.asked[1:] == [f"pirate@{two}"]


async def test_load_says_success_only_when_the_adapter_is_ready(gateway):
    gateway.adapters.slow.add("*")
    with_adapter(gateway, "pirate", b"1")
    pressed = asyncio.create_task(press(gateway, "load", "pirate"))
    await gateway.adapters.waiting.wait()
    assert not pressed.done()
    gateway.adapters.settle()
    assert (await pressed).status_code == 200


async def test_a_load_that_fails_says_why(gateway):
    with_adapter(gateway, "pirate", b"1")
    gateway.adapters.broken[gateway.adapters.records["pirate"].current] = "rank 64 > 16"
    assert "rank 64 > 16" in said(await press(gateway, "load", "pirate"), 409)


async def test_the_buttons_need_the_right(gateway):
    with_adapter(gateway, "pirate", b"1")
    for button in ("load", "unload"):
        assert "allow: [adapters]" in said(await press(gateway, button, "pirate", key=CHAT), 403)
    assert phases(gateway, "pirate") == ["Ready"]


async def test_a_key_for_some_names_has_no_buttons_for_others(gateway):
    with_adapter(gateway, "pirate", b"1")
    with_adapter(gateway, "lawyer", b"2")
    nameless = said(await press(gateway, "unload", "nothing", key=PIRATES), 404)
    assert said(await press(gateway, "unload", "lawyer", key=PIRATES), 404) == nameless.replace("nothing", "lawyer")
    assert phases(gateway, "lawyer") == ["Ready"]
    assert (await press(gateway, "unload", "pirate", key=PIRATES)).status_code == 200


async def test_a_base_model_cannot_be_ejected(gateway):
    for button in ("load", "unload"):
        assert "smollm2 is no adapter" in said(await press(gateway, button, "smollm2"), 400)


async def test_a_pinned_adapter_stays(gateway):
    with_adapter(gateway, "pirate", b"1")
    await gateway.adapters.configure("pirate", {"pinned": True})
    assert "pinned" in said(await press(gateway, "unload", "pirate"), 409)


async def test_downloading_and_deleting_name_the_command(gateway):
    with_adapter(gateway, "pirate", b"1")
    async with gateway.client(BUTTONS) as client:
        assert "gateway adapters add" in said(await client.post("/models", json={"model": "org/repo"}), 400)
        assert "gateway adapters remove" in said(await client.delete("/models", params={"model": "pirate"}), 400)
    assert list(gateway.adapters.records) == ["pirate"]


async def test_what_is_no_model_is_refused(gateway):
    async with gateway.client(BUTTONS) as client:
        for body in ({}, {"model": 1}, ["pirate"]):
            said(await client.post("/models/unload", json=body), 400)
