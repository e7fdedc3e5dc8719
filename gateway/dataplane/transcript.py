"""What is said in one request, kept until it has ended.  Only requests of keys with `log_content` have a transcript.

Nothing is parsed here: what was asked is kept as it was parsed, and what is answered as the bytes that are sent.
"""

from __future__ import annotations

from typing import Any, Protocol

from gateway.dataplane.reply import Message, Send
from gateway.domain.call import Endpoint
from gateway.domain.content import Content

_MOST = 16 * 1024 * 1024  # bytes of a stream that are kept; what is written down of them is far less
_MUTE = frozenset({Endpoint.EMBEDDINGS.value, Endpoint.TOKENIZE.value})  # they answer with numbers


class Contents(Protocol):
    """Where contents are written down."""

    def put(self, content: Content) -> None:
        """Takes it.  Neither waits nor fails: what cannot be written is dropped."""
        ...


class Transcript:
    """Hears what a client asks and is sent."""

    __slots__ = ("_deaf", "_heard", "answer", "body", "size", "whole")

    def __init__(self) -> None:
        self.body: dict[str, Any] | None = None
        self.answer: list[bytes] = []
        self.whole = True
        self.size = 0  # bytes of both
        self._heard = 0
        self._deaf = False

    def asked(self, body: dict[str, Any], size: int) -> None:
        """The request's body, which had so many bytes."""
        self.body = body
        self.size += size

    def hearing(self, send: Send, endpoint: str) -> Send:
        """`send`, with ears."""

        async def heard(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._deaf = endpoint in _MUTE and message["status"] == 200
            elif not self._deaf:
                self._hear(message.get("body", b""))
            await send(message)

        return heard

    def _hear(self, data: bytes) -> None:
        """The first piece may be the whole answer, which is there in any case."""
        if self._heard and self._heard + len(data) > _MOST:
            self.whole = False
            return
        self.answer.append(data)
        self._heard += len(data)
        self.size += len(data)
