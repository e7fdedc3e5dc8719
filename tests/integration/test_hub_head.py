"""The main branch's commit, asked of a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.controlplane.hubhead import HubHead
from tests.fakes.fake_hub import FakeHub, fake_hub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        server.repository("org/bot", {"adapter_config.json": b"{}"})
        yield server


async def test_the_commit_of_the_main_branch_is_told(hub: FakeHub) -> None:
    assert await HubHead({"HF_ENDPOINT": hub.url})("org/bot") == hub.commit
    hub.commit = "d" * 40
    assert await HubHead({"HF_ENDPOINT": hub.url + "/"})("org/bot") == "d" * 40


async def test_a_private_repository_is_asked_for_with_the_token(hub: FakeHub) -> None:
    hub.token = "hf_secret"
    assert await HubHead({"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"})("org/bot") == hub.commit
    assert await HubHead({"HF_ENDPOINT": hub.url})("org/bot") is None


async def test_a_hub_that_does_not_say_is_no_failure_of_ours(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    head = HubHead({"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"})
    assert await head("org/nothing") is None
    hub.commit = "nonsense"
    assert await head("org/bot") is None
    assert await HubHead({"HF_ENDPOINT": "http://127.0.0.1:1"})("org/bot") is None
    assert "hf_secret" not in caplog.text
