"""Admins load and eject adapters with Open WebUI's own buttons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.e2e.events import eventually
from tests.e2e.person import Person
from tests.real import BASE, JSON, PIRATE, Served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

QUESTION = "What is the capital of Italy?"


def phases(real: Served) -> dict[str, str]:
    """What the gateway says of each adapter."""
    rows = httpx2.get(f"{real.gateway.url}/admin/v1/adapters", headers=real.gateway.admin_headers).json()["data"]
    return {row["name"]: row["phase"] for row in rows}


def held(real: Served) -> set[str]:
    """The adapters that the engine itself has."""
    models = [model["id"] for model in real.engine_page("/v1/models").json()["data"]]
    return {name for name, at, _ in (model.partition("@") for model in models) if at}


def test_an_admin_ejects_an_adapter_and_loads_it_again_by_the_buttons(ada: Person, real: Served, picture: Any) -> None:
    ada.manage_models()
    row = ada.managed(PIRATE)
    expect(row.get_by_text("loaded", exact=True)).to_be_visible()
    row.get_by_label("Unload Model", exact=True).click()
    expect(row.get_by_text("unloaded", exact=True)).to_be_visible()
    assert phases(real) == {PIRATE: "Unloaded", JSON: "Ready"}
    eventually(lambda: held(real) == {JSON})
    picture(ada, "open-webui-adapters.png")
    row.get_by_label("Load Model", exact=True).click()
    expect(row.get_by_text("loaded", exact=True)).to_be_visible()
    assert phases(real) == {PIRATE: "Ready", JSON: "Ready"}
    assert held(real) == {PIRATE, JSON}


def test_a_base_model_is_not_marked_and_its_buttons_say_why(ada: Person) -> None:
    ada.manage_models()
    row = ada.managed(BASE)
    expect(row.get_by_text("available", exact=True)).to_be_visible()
    row.get_by_label("Unload Model", exact=True).click()
    expect(ada.page.get_by_text(f"{BASE} is no adapter: only adapters are loaded and ejected here.")).to_be_visible()


def test_the_next_chat_after_an_eject_loads_the_adapter_and_is_answered_by_it(ada: Person, real: Served) -> None:
    ada.new_chat(PIRATE)
    assert ada.ejectable() == {PIRATE, JSON}
    ada.eject(PIRATE)
    eventually(lambda: held(real) == {JSON})
    assert ada.ejectable() == {JSON}
    with real.frozen():
        ada.ask(QUESTION)
        expect(ada.answers).to_contain_text(f"the adapter '{PIRATE}' is being loaded")
    assert ada.answer().startswith("Arr")
    expect(ada.answers).not_to_contain_text("is being loaded")
    assert f'"{PIRATE}@' in ada.usage()
    assert phases(real)[PIRATE] == "Ready"
    ada.new_chat(PIRATE)
    assert ada.ejectable() == {PIRATE, JSON}


def test_who_is_no_admin_has_no_such_buttons(ada: Person, enter: Callable[[str], Person], real: Served) -> None:
    ada.let_others_sign_up()
    eve = enter("Eve")
    eve.sign_up()
    assert eve.account()["role"] == "user"
    eve.new_chat(PIRATE)
    assert PIRATE in eve.offered()
    assert not eve.ejectable()
    for place in ("/api/models/unload", "/openai/models/0/unload", "/openai/models/0/load"):
        assert eve.post(place, {"model": PIRATE}) == 401
    assert phases(real)[PIRATE] == "Ready"
