"""The engine's door, which runs inside vLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.inengine import lora_gateway_door
from gateway.inengine.lora_gateway_door import Door

KEY = "the-key-of-this-start"


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    monkeypatch.setenv("VLLM_API_KEY", KEY)
    return Door(app)


async def opened(door: Door, path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> Any:
    """The first message that comes back: its status, or how a socket is closed."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a refusal reads nothing")

    await door({"type": kind, "path": path, "headers": list(headers)}, receive, send)
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize(
    "path", ["/adapters", "/invocations", "/tokenize", "/metrics", "/v1/models", "/healthy", "//health"]
)
async def test_every_route_asks_for_the_key(door: Door, path: str) -> None:
    good = (b"authorization", f"Bearer {KEY}".encode())
    assert await opened(door, path, good) == 200
    assert await opened(door, path) == 401
    assert await opened(door, path, (b"authorization", b"Bearer another")) == 401
    assert await opened(door, path, (b"authorization", b"Bearer \xff\xfe")) == 401
    assert await opened(door, path, good, good) == 401


async def test_health_is_open_and_a_socket_without_the_key_is_closed(door: Door) -> None:
    assert await opened(door, "/health") == 200
    assert await opened(door, "/v1/realtime", kind="websocket") == 1008


def test_the_door_needs_nothing_but_the_standard_library() -> None:
    """It runs in the engine's environment, of which we know nothing."""
    folder = Path(lora_gateway_door.__file__).parent
    code = f"import sys; sys.path.append({str(folder)!r}); import lora_gateway_door"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
