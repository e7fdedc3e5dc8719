"""The engine's door: every route but /health asks for the key.

vLLM's own key guards only what lies below /v1, /v2, /inference and /cohere (its docs/usage/security.md says so).
/adapters, which loads an adapter from any folder, /invocations, which answers prompts, /scale_elastic_ep and more are
open to every program on the machine, and to every page that a browser on it shows.

`vllm serve --middleware lora_gateway_door.Door` puts it in front of everything.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_REFUSAL = b'{"error":{"message":"Unauthorized","type":"Unauthorized","param":null,"code":401}}'


class Door:
    """ASGI middleware; the key is VLLM_API_KEY.  Raises KeyError without one, which ends the engine."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._expected = b"Bearer " + os.environ["VLLM_API_KEY"].encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == "/health" or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "Unauthorized"})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REFUSAL))]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _has_key(self, scope: Message) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
