"""Ollama's answers as OpenAI's: NDJSON streams, whole answers and embeddings.

What Ollama sends is in its api/types.go (August 2026).  Counters that are 0 are left out; a tool call comes whole.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from gateway.backends import faults
from gateway.backends.base import Answer, DecodeFault
from gateway.domain.call import Call, Endpoint
from gateway.domain.usage import Usage, from_openai

_MAX_LINE = 8 * 1024 * 1024  # bytes of one streamed object
_DONE = b"data: [DONE]\n\n"


class OllamaDecoder:
    """NDJSON in, OpenAI's events out."""

    __slots__ = ("_call", "_head", "_length", "_rest", "_tools", "finished", "tokens", "usage")

    def __init__(self, call: Call) -> None:
        self.usage: Usage | None = None
        self.tokens = 0
        self.finished = False
        self._call = call
        self._rest = bytearray()
        self._head: dict[str, Any] = {}
        self._tools = 0
        self._length = 0

    def feed(self, data: bytes) -> bytes:
        """Complete events.  Raises DecodeFault."""
        lines, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._rest += data
            if len(self._rest) > _MAX_LINE:
                raise faults.protocol("The upstream sent an object of more than 8 MiB.")
            return b""
        complete = bytes(self._rest) + lines
        self._rest = bytearray(rest)
        out: list[bytes] = []
        for line in complete.split(b"\n"):
            if line.strip() and not self.finished:
                try:
                    out += self._events(line)
                except DecodeFault as fault:
                    fault.flushed = b"".join(out)
                    raise
        return b"".join(out)

    def end(self) -> None:
        """Fine only after an object with `done`."""
        if not self.finished:
            raise faults.protocol("The upstream ended the stream before the answer was complete.")

    def tail(self, usage: Usage, extras: Mapping[str, Any]) -> bytes:
        """The usage chunk, if it was asked for, and `[DONE]`."""
        if not self._call.wants_usage:
            return _DONE
        return _event({**self._head, "choices": [], "usage": {**usage.as_openai(), **extras}}) + _DONE

    def _events(self, line: bytes) -> list[bytes]:
        part = parse(line)
        if part.get("error"):
            raise faults.broke_off()
        first = not self._head
        if first:
            self._head = _head(self._call, part, whole=False)
        text = self._call.endpoint is Endpoint.COMPLETIONS
        events = self._text(part) if text else self._delta(part, first)
        if part.get("done"):
            self.finished = True
            self.usage = usage_of(part)
            ending: dict[str, Any] = {"text": ""} if text else {"delta": {}}
            events.append(self._chunk(ending, None, _finish_reason(part, self._tools)))
        return events

    def _text(self, part: dict[str, Any]) -> list[bytes]:
        text, found = _string(part.get("response")), _logprobs(part)
        if not text and not found:
            return []
        self.tokens += 1
        chunk = self._chunk({"text": text}, _text_logprobs(found, self._length), None)
        self._length += len(text)
        return [chunk]

    def _delta(self, part: dict[str, Any], first: bool) -> list[bytes]:
        delta, found = _delta(part, self._call, self._tools), _logprobs(part)
        calls = delta.get("tool_calls", ())
        self._tools += len(calls)
        self.tokens += 1 if delta else 0
        if first:
            delta = {"role": "assistant", "content": "", **delta}
        elif not delta and not found:
            return []
        return [self._chunk({"delta": delta}, _chat_logprobs(found), None)]

    def _chunk(self, content: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None) -> bytes:
        choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish}
        return _event({**self._head, "choices": [choice]})


def whole(call: Call, parsed: dict[str, Any]) -> Answer:
    """A chat answer or a completion that came in one piece."""
    if not parsed.get("done"):
        raise faults.protocol("The upstream's answer is not complete.")
    found, tools = _logprobs(parsed), 0
    if call.endpoint is Endpoint.COMPLETIONS:
        choice: dict[str, Any] = {"text": _string(parsed.get("response")), "logprobs": _text_logprobs(found, 0)}
    else:
        delta = _delta(parsed, call, 0)
        calls = delta.get("tool_calls", ())
        tools = len(calls)
        for made in calls:
            del made["index"]  # only a stream's calls have one
        message = {"role": "assistant", "content": None if tools else "", **delta}
        choice = {"message": message, "logprobs": _chat_logprobs(found)}
    choice = {"index": 0, **choice, "finish_reason": _finish_reason(parsed, tools)}
    answer = {**_head(call, parsed, whole=True), "choices": [choice]}
    usage = usage_of(parsed)
    if usage is not None:
        answer["usage"] = usage.as_openai()
    return Answer(orjson.dumps(answer), usage)


def embeddings(call: Call, parsed: dict[str, Any]) -> Answer:
    """A list of embeddings, as floats or as base64."""
    vectors = parsed.get("embeddings")
    given = call.body["input"]
    expected = 1 if isinstance(given, str) else len(given)
    if not isinstance(vectors, list) or len(vectors) != expected:
        raise faults.protocol(f"The upstream's answer does not have {expected} embeddings.")
    encode = _base64 if call.body.get("encoding_format") == "base64" else _floats
    data = [{"object": "embedding", "index": i, "embedding": encode(vector)} for i, vector in enumerate(vectors)]
    answer: dict[str, Any] = {"object": "list", "data": data, "model": call.model}
    usage = usage_of(parsed)
    tokens = 0 if usage is None else usage.prompt
    answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Answer(orjson.dumps(answer), usage)


def usage_of(part: Mapping[str, Any]) -> Usage | None:
    """What the counters say.  Counters that are 0 are left out, and no prompt has none: without its count, or where a
    count cannot be, nothing is known."""
    counts = {"prompt_tokens": part.get("prompt_eval_count"), "completion_tokens": part.get("eval_count", 0)}
    return from_openai(counts)


def unix_time(value: Any) -> int:
    """A time of Ollama's (RFC 3339, nanoseconds) in seconds since 1970; 0 where it is none."""
    try:
        return int(datetime.fromisoformat(value).timestamp())
    except (TypeError, ValueError, OverflowError):
        return 0


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object.  Raises DecodeFault."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise faults.protocol("The upstream sent something that is not a JSON object.")
    return parsed


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _head(call: Call, part: dict[str, Any], whole: bool) -> dict[str, Any]:
    number = _number(call)
    if call.endpoint is Endpoint.COMPLETIONS:
        identity = {"id": f"cmpl-{number}", "object": "text_completion"}
    else:
        identity = {"id": f"chatcmpl-{number}", "object": "chat.completion" if whole else "chat.completion.chunk"}
    return {**identity, "created": unix_time(part.get("created_at")), "model": call.model}


def _number(call: Call) -> str:
    return call.request_id.removeprefix("req_")


def _delta(part: Mapping[str, Any], call: Call, tools: int) -> dict[str, Any]:
    """The message of an answer, or of a part of one, as OpenAI's delta; `tools` calls came before it."""
    message = part.get("message")
    if not isinstance(message, dict):
        return {}
    delta: dict[str, Any] = {}
    if content := _string(message.get("content")):
        delta["content"] = content
    if thinking := _string(message.get("thinking")):
        delta["reasoning_content"] = thinking
    if calls := _objects(message.get("tool_calls")):
        delta["tool_calls"] = [_tool_call(made, call, tools + i) for i, made in enumerate(calls)]
    return delta


def _tool_call(made: Mapping[str, Any], call: Call, index: int) -> dict[str, Any]:
    function = made.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise faults.protocol("The upstream sent a tool call without a name.")
    return {
        "index": index,
        "id": _string(made.get("id")) or f"call_{_number(call)}_{index}",
        "type": "function",
        "function": {
            "name": function["name"],
            "arguments": orjson.dumps(function.get("arguments") or {}).decode(),
        },
    }


def _finish_reason(part: Mapping[str, Any], tools: int) -> str:
    if part.get("done_reason") == "length":
        return "length"
    return "tool_calls" if tools else "stop"


def _logprobs(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {**_token(one), "top_logprobs": [_token(other) for other in _objects(one.get("top_logprobs"))]}
        for one in _objects(part.get("logprobs"))
    ]


def _token(one: Mapping[str, Any]) -> dict[str, Any]:
    token = _string(one.get("token"))
    return {"token": token, "logprob": one.get("logprob"), "bytes": one.get("bytes") or list(token.encode())}


def _chat_logprobs(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {"content": found, "refusal": None} if found else None


def _text_logprobs(found: list[dict[str, Any]], offset: int) -> dict[str, Any] | None:
    """The form of /v1/completions; `offset` is how much text came before."""
    if not found:
        return None
    offsets = []
    for one in found:
        offsets.append(offset)
        offset += len(one["token"])
    return {
        "tokens": [one["token"] for one in found],
        "token_logprobs": [one["logprob"] for one in found],
        "top_logprobs": [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in found],
        "text_offset": offsets,
    }


def _floats(vector: Any) -> Any:
    if not isinstance(vector, list):
        raise faults.protocol("The upstream sent an embedding that is not a list of numbers.")
    return vector


def _base64(vector: Any) -> str:
    """OpenAI's base64 form: little-endian float32."""
    try:
        return base64.b64encode(array("f", vector).tobytes()).decode("ascii")
    except TypeError:
        raise faults.protocol("The upstream sent an embedding that is not a list of numbers.") from None


def _string(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise faults.protocol("The upstream sent something else where a text belongs.")
    return value or ""


def _objects(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise faults.protocol("The upstream sent something else where a list of objects belongs.")
    return value
