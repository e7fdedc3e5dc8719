"""Imports through the administration, to an engine that does as the test says: every ending is told as what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.sources.pack import pack
from gateway.controlplane.admin import AdapterAdmin
from tests.fakes.adapter_corpus import TINY, Craft
from tests.fakes.fake_vllm_http import VLLM
from tests.integration.test_control_plane import Shelf, attached, controlled
from tests.patience import LATE


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def archive(admin: AdapterAdmin, folder: Path) -> Path:
    """An adapter as it was uploaded."""
    Craft(TINY).write(folder)
    packed = admin.uploads / "upload"
    with packed.open("wb") as file:
        pack(folder, file)
    return packed


async def told(admin: AdapterAdmin, id: str, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(6 * LATE):
        while not enough(page := await admin.imports(id)):
            await asyncio.sleep(0.01)
    return page


async def test_an_import_that_the_end_of_the_gateway_cuts_is_not_told_as_ready(shelf: Shelf, tmp_path: Path) -> None:
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        vllm.forgets = 1000
        admin = AdapterAdmin(plane, watch.config)
        await admin.start()
        await watch.until(lambda: watch.ready("base"))
        begun = await admin.receive("pirate", archive(admin, tmp_path / "a"), promote=False, settings={})
        await told(admin, begun["id"], lambda page: page["phase"] == "Loading")
        await admin.close()
        ended = await admin.imports(begun["id"])
        assert (ended["phase"], ended["reason"]) == ("Failed", "it was ended: the gateway stopped")


async def test_an_import_does_not_wait_for_an_engine_for_ever_and_what_it_brought_is_kept(
    shelf: Shelf, tmp_path: Path
) -> None:
    async with VLLM(root=str(shelf.base)) as vllm, controlled(shelf.config(attached(vllm))) as (plane, watch):
        vllm.forgets = 1000
        admin = AdapterAdmin(plane, watch.config, patience=0.5)
        await admin.start()
        await watch.until(lambda: watch.ready("base"))
        begun = await admin.receive("pirate", archive(admin, tmp_path / "a"), promote=False, settings={})
        ended = await told(admin, begun["id"], lambda page: page["phase"] == "Failed")
        assert "is not Ready after 0.5 s, and stays in the store: gpu: " in ended["reason"]
        assert "does not list it" in ended["reason"]
        vllm.forgets = 0
        await watch.until(lambda: watch.ready("pirate"))
        assert ended["version"] == (await admin.show("pirate"))["current"]
        await admin.close()
