"""One line of the content log: what was asked and answered as JSON, bounded, and without pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.domain.content import Content

BOUND = 256 * 1024  # bytes of JSON that are written of what was asked, and of what was answered
_CLOSING = 256  # of them for the brackets that close what was cut
_REASONING = ("reasoning_content", "reasoning", "thinking")  # names of one thing; an upstream may send two of them


def line(content: Content) -> bytes:
    """The line, with its end."""
    request, request_cut = _bounded(None if content.body is None else _without_files(content.body))
    answer, answer_cut = _bounded(_answer(content.answer))
    written = {
        "time": datetime.fromtimestamp(content.at / 1e9, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        "request_id": content.request_id,
        "key": content.key,
        "key_name": content.key_name,
        "user": content.user,
        "team": content.team,
        "endpoint": content.endpoint,
        "model": content.model,
        "adapter": content.adapter,
        "status": content.status,
        "reason": content.reason,
        "request": request,
        "answer": answer,
        "truncated": request_cut or answer_cut or not content.whole,
    }
    return orjson.dumps(written, option=orjson.OPT_APPEND_NEWLINE)


# What was asked


def _without_files(body: Mapping[str, Any]) -> dict[str, Any]:
    """With the length of each picture, sound and file of the messages in its place."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return dict(body)
    return {**body, "messages": [_message(message) for message in messages]}


def _message(message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_part(part) for part in message["content"]]}


def _part(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _part(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_part(each, name) for each in value]
    if isinstance(value, str) and (name == "data" or (value.startswith("data:") and name not in ("", "text"))):
        return f"[{len(value.encode())} bytes]"
    return value


# What was answered


def _answer(pieces: Iterable[bytes]) -> dict[str, Any] | None:
    """The texts of an answer, put together, and the error that it is or ended with; None for one without either."""
    choices: dict[int, _Choice] = {}
    told: dict[str, Any] = {}
    for event in _events(b"".join(pieces)):
        if error := event.get("error"):
            told["error"] = error
        for position, choice in enumerate(_dicts(event.get("choices"))):
            index = choice.get("index", position)
            choices.setdefault(index if isinstance(index, int) else position, _Choice()).hear(choice)
    if choices:
        told["choices"] = [{"index": index, **choice.said()} for index, choice in sorted(choices.items())]
    return told or None


def _events(answer: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream, as the gateway frames it, or the one of a whole answer."""
    texts = [event[6:] for event in answer.split(b"\n\n")] if answer.startswith(b"data: ") else [answer]
    for text in texts:
        try:
            event = orjson.loads(text)
        except orjson.JSONDecodeError:  # `[DONE]`, and what is no JSON
            continue
        if isinstance(event, dict):
            yield event


class _Choice:
    """One choice of an answer, from the pieces of a stream or from all of it at once."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, str]] = {}
        self._finish: Any = None

    def hear(self, choice: dict[str, Any]) -> None:
        """Takes the next piece."""
        self._finish = choice.get("finish_reason") or self._finish
        self._add("text", choice.get("text"))
        said = choice.get("delta") or choice.get("message")
        if not isinstance(said, dict):
            return
        self._add("content", said.get("content"))
        self._add("reasoning", next((said[name] for name in _REASONING if said.get(name)), None))
        self._add("refusal", said.get("refusal"))
        for position, call in enumerate(_dicts(said.get("tool_calls"))):
            index = call.get("index", position)
            self._call(index if isinstance(index, int) else position, call)

    def said(self) -> dict[str, Any]:
        """All of it: only what there is."""
        told: dict[str, Any] = {name: "".join(texts) for name, texts in self._texts.items()}
        if self._calls:
            told["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        if self._finish is not None:
            told["finish_reason"] = self._finish
        return told

    def _add(self, name: str, value: Any) -> None:
        if value:
            self._texts.setdefault(name, []).append(_text(value))

    def _call(self, index: int, call: dict[str, Any]) -> None:
        """Its name comes once and its arguments in pieces."""
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        known = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        known["id"] = known["id"] or _text(call.get("id") or "")
        known["name"] = known["name"] or _text(function.get("name") or "")
        known["arguments"] += _text(function.get("arguments") or "")


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


# Bounds


def _bounded(value: Any) -> tuple[Any, bool]:
    """The value, of which no more is kept than has BOUND bytes as JSON, and whether something was cut away."""
    shears = _Shears(BOUND - _CLOSING)
    return shears.cut(value), shears.used


class _Shears:
    """Cuts texts at a character, and lists and objects at an item, when there is no room left."""

    def __init__(self, room: int) -> None:
        self._room = room
        self.used = False

    def cut(self, value: Any) -> Any:
        """As much of the value as there is room for."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            self._room -= 2
            return [self.cut(each) for each in value if self._takes(1)]
        if isinstance(value, dict):
            self._room -= 2
            return {name: self.cut(each) for name, each in value.items() if self._takes(_size(name) + 2)}
        self._room -= _size(value)
        return value

    def _takes(self, size: int) -> bool:
        if size >= self._room:
            self.used = True
            self._room = 0  # and nothing that comes behind it
            return False
        self._room -= size
        return True

    def _text(self, text: str) -> str:
        size = _size(text)
        if size > self._room:
            self.used = True
            text = text.encode()[: max(0, self._room - 2)].decode(errors="ignore")
            while text and (size := _size(text)) > self._room:  # characters that JSON writes longer
                text = text[: min(len(text) - 1, len(text) * self._room // size)]
            size = self._room
        self._room -= size
        return text


def _size(value: Any) -> int:
    return len(orjson.dumps(value))
