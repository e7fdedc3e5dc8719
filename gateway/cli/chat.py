"""Asks a running gateway as its clients do, and measures what comes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx2

from gateway.cli.output import Failure

_CONNECT_SECONDS = 10.0
_SILENT_SECONDS = 120.0  # between two pieces of an answer, and before the first
_MAX_TEXT = 1 << 20  # characters of one answer
_MAX_LINE = 8 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came.  `first_byte` and `total` in seconds since it was asked; None: there was none, nobody counted.
    `error` says what went wrong, and "" that nothing did."""

    text: str = ""
    first_byte: float | None = None
    total: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error: str = ""


class Client:
    """A client with this key; a context."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._client = httpx2.Client(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(_SILENT_SECONDS, connect=_CONNECT_SECONDS),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, adapter: str, messages: list[dict[str, Any]], max_tokens: int) -> Answer:
        """The answer of exactly this version (`name@version`), greedily.  Raises Failure where no gateway is."""
        body = {
            "model": adapter,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        reading = _Reading(time.monotonic())
        try:
            with self._client.stream("POST", f"{self._url.rstrip('/')}/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    return reading.answer(error=_refusal(answer))
                if (by := answer.headers.get("x-gateway-adapter")) != adapter:
                    return reading.answer(error=f"it was answered by {by or 'no adapter'}, not by {adapter}")
                return reading.read(_lines(answer.iter_bytes()))
        except (httpx2.ConnectError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise Failure(f"the gateway at {self._url} does not answer ({error}): look at --url") from None
        except httpx2.HTTPError as error:
            return reading.answer(error=f"the answer broke off ({error or type(error).__name__})")


@dataclass(slots=True)
class _Reading:
    """An answer on its way."""

    asked: float
    first_byte: float | None = None
    pieces: list[str] = field(default_factory=list)
    size: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None

    def read(self, lines: Iterable[str]) -> Answer:
        """Reads the answer to its end: a connection that is closed before that looks like a client that left."""
        done = False
        for line in lines:
            if self.first_byte is None:
                self.first_byte = time.monotonic() - self.asked
            if not line.startswith("data:"):
                continue
            event = line.removeprefix("data:").strip()
            if event == "[DONE]":
                done = True
                continue
            try:
                chunk = json.loads(event)
                if "error" in chunk:
                    return self.answer(error=str(chunk["error"]["message"]))
                self._take(chunk)
            except (ValueError, KeyError, TypeError, AttributeError):
                return self.answer(error="what came is no answer of a chat")
            if self.size > _MAX_TEXT:
                return self.answer(error=f"the answer exceeds {_MAX_TEXT} characters")
        return self.answer("" if done else "the answer broke off")

    def answer(self, error: str = "") -> Answer:
        """What has come so far."""
        return Answer(
            "".join(self.pieces),
            self.first_byte,
            time.monotonic() - self.asked,
            self.usage.get("prompt_tokens"),
            self.usage.get("completion_tokens"),
            self.finish_reason,
            error,
        )

    def _take(self, chunk: dict[str, Any]) -> None:
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            piece = (choice.get("delta") or {}).get("content") or ""
            self.size += len(piece)
            self.pieces.append(piece)


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """What ends with a line feed: an answer may hold everything else that Python takes for the end of a line."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
        if len(rest) > _MAX_LINE:
            raise httpx2.DecodingError(f"a line exceeds {_MAX_LINE} bytes")


def _refusal(answer: httpx2.Response) -> str:
    try:
        return str(json.loads(answer.read()[:_MAX_TEXT])["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
