"""OpenAI's dialect as the fake upstream speaks it: pure functions from a parsed request to answers and chunks.

The answers are what the official SDK expects (openai 3.54, `openai.types`), and deterministic: words instead of
tokens, tool arguments and JSON answers made up from their schema, vectors from a hash.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CREATED = 1_795_461_540
PIECES = ("One", " two", " three", " four", " five")

#: What the request's usage becomes on its way out: None leaves it away, anything else is a lie to be told.
UsageRule = Callable[[dict[str, Any]], Any]


class Rejected(Exception):
    """An error answer: status and OpenAI's error object."""

    def __init__(self, status: int, message: str, *, type: str, code: str | None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}}).encode()


def invalid(message: str, param: str | None = None, code: str | None = None) -> Rejected:
    return Rejected(400, message, type="invalid_request_error", code=code, param=param)


@dataclass(frozen=True, slots=True)
class Event:
    """One chunk of a stream; `tokens`: how many content tokens it carries."""

    data: dict[str, Any]
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """What one choice says."""

    pieces: tuple[str, ...]
    finish: str
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers one request.  `pieces` is what the model would say without a limit."""

    body: Mapping[str, Any]
    endpoint: str
    pieces: tuple[str, ...] = PIECES
    usage_rule: UsageRule = field(default=lambda usage: usage)
    id: str = "chatcmpl-fake"

    @property
    def _chat(self) -> bool:
        return self.endpoint == "chat"

    def _envelope(self, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self._chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": CREATED,
            "model": self.body["model"],
            "system_fingerprint": "fp_fake",
        }

    def generation(self) -> Generation:
        """What is said: a tool call, JSON by the schema, or the pieces; within the limit and the stop words."""
        body = self.body
        if self._chat and (calls := _tool_calls(body)):
            return Generation((), "tool_calls", calls)
        pieces, finish = self.pieces, "stop"
        if self._chat and (answer := _structured(body)) is not None:
            pieces = tuple(json.dumps(answer).replace(" ", " \0").split("\0"))
        if not self._chat and body.get("echo"):
            pieces = (str(_prompts(body)[0]), *pieces)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit is not None and limit < len(pieces):
            pieces, finish = pieces[:limit], "length"
        stops = body.get("stop") or ()
        text = "".join(pieces)
        for stop in [stops] if isinstance(stops, str) else stops:
            if stop in text:
                pieces, finish = (text.split(stop)[0],), "stop"
        return Generation(pieces, finish)

    def usage(self, said: Generation) -> Any:
        prompt = sum(len(text.split()) for text in _prompt_texts(self.body))
        completion = (len(said.pieces) + len(said.tool_calls)) * (self.body.get("n") or 1)
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return self.usage_rule(counts)

    def whole(self) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        said = self.generation()
        choices = []
        for index in range(self.body.get("n") or 1):
            choice: dict[str, Any] = {"index": index, "finish_reason": said.finish, "logprobs": self._logprobs(said)}
            text = "".join(said.pieces)
            if self._chat:
                message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
                if said.tool_calls:
                    message["tool_calls"] = list(said.tool_calls)
                choice["message"] = message
            else:
                choice["text"] = text
            choices.append(choice)
        answer = self._envelope(chunk=False) | {"choices": choices}
        if (usage := self.usage(said)) is not None:
            answer["usage"] = usage
        return answer

    def chunks(self) -> Iterator[Event]:
        """The answer to a request with `stream`, the usage chunk only when it was asked for, without `[DONE]`."""
        said = self.generation()
        asked = (self.body.get("stream_options") or {}).get("include_usage", False)
        envelope = self._envelope(chunk=True) | ({"usage": None} if asked else {})
        for index in range(self.body.get("n") or 1):
            for change, tokens, finish in self._deltas(said):
                choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
                if tokens and not said.tool_calls:
                    piece = change.get("content", change.get("text", ""))
                    choice["logprobs"] = self._logprobs(Generation((piece,), ""))
                choice |= {"delta": change} if self._chat else change
                yield Event(envelope | {"choices": [choice]}, tokens)
        if asked and (usage := self.usage(said)) is not None:
            yield Event(envelope | {"choices": [], "usage": usage})

    def _deltas(self, said: Generation) -> Iterator[tuple[dict[str, Any], int, str | None]]:
        if not self._chat:
            for piece in said.pieces:
                yield {"text": piece}, 1, None
            yield {"text": ""}, 0, said.finish
            return
        yield {"role": "assistant", "content": None if said.tool_calls else ""}, 0, None
        for position, call in enumerate(said.tool_calls):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            opening = {**call, "index": position, "function": {"name": name, "arguments": ""}}
            yield {"tool_calls": [opening]}, 1, None
            for part in (arguments[:5], arguments[5:]):
                yield {"tool_calls": [{"index": position, "function": {"arguments": part}}]}, 0, None
        for piece in said.pieces:
            yield {"content": piece}, 1, None
        yield {}, 0, said.finish

    def _logprobs(self, said: Generation) -> dict[str, Any] | None:
        asked = self.body.get("logprobs")
        if not asked and asked != 0:
            return None
        if not self._chat:
            offsets = list(itertools.accumulate((len(piece) for piece in said.pieces), initial=0))[:-1]
            return {
                "tokens": list(said.pieces),
                "token_logprobs": [-0.5] * len(said.pieces),
                "top_logprobs": [{piece: -0.5} for piece in said.pieces] if asked else None,
                "text_offset": offsets,
            }
        others = [
            {"token": f"~{i}", "logprob": -1.0 - i, "bytes": None} for i in range(self.body.get("top_logprobs") or 0)
        ]
        content = [
            {"token": piece, "logprob": -0.5, "bytes": list(piece.encode()), "top_logprobs": others}
            for piece in said.pieces
        ]
        return {"content": content, "refusal": None}


def check(endpoint: str, body: object, models: Sequence[str]) -> dict[str, Any]:
    """The body if OpenAI would take it; raises Rejected with the status that OpenAI gives."""
    if not isinstance(body, dict):
        raise invalid("We could not parse the JSON body of your request.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("you must provide a model parameter", "model")
    if model not in models:
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise Rejected(404, message, type="invalid_request_error", code="model_not_found")
    if endpoint == "chat":
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid("Invalid 'messages': empty array. Expected an array with minimum length 1.", "messages")
    elif endpoint == "completions" and "prompt" not in body:
        raise invalid("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
    elif endpoint == "embeddings" and not body.get("input"):
        raise invalid("'$.input' is invalid.", "input")
    for name, lowest, highest in (("n", 1, 128), ("max_tokens", 1, 2**31), ("temperature", 0, 2), ("top_p", 0, 1)):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(f"Invalid type for '{name}'.", name, "invalid_type")
        if not lowest <= value <= highest:
            raise invalid(f"Invalid '{name}': out of range.", name, "decimal_out_of_range")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    return body


def embeddings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Unit vectors that depend on the input alone, as floats or as base64 of little-endian float32."""
    given = body["input"]
    inputs: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    size = body.get("dimensions") or 8
    data = []
    for index, text in enumerate(inputs):
        digest = hashlib.shake_256(json.dumps(text).encode()).digest(size)
        norm = sum(byte * byte for byte in digest) ** 0.5 or 1.0
        packed = struct.pack(f"<{size}f", *(byte / norm for byte in digest))
        vector: Any = list(struct.unpack(f"<{size}f", packed))
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(packed).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(len(text.split()) if isinstance(text, str) else len(text) for text in inputs)
    return {
        "object": "list",
        "data": data,
        "model": body["model"],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _prompts(body: Mapping[str, Any]) -> list[Any]:
    prompt = body["prompt"]
    return prompt if isinstance(prompt, list) else [prompt]


def _prompt_texts(body: Mapping[str, Any]) -> Iterator[str]:
    if "messages" not in body:
        yield from map(str, _prompts(body))
        return
    for message in body["messages"]:
        content = message.get("content") or ""
        if isinstance(content, str):
            yield content
        else:
            yield from (part.get("text", "") for part in content)


def _tool_calls(body: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The first tool, or the one that `tool_choice` names; none once a tool has answered."""
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if not tools or choice == "none" or body["messages"][-1]["role"] == "tool":
        return ()
    chosen = tools[0]["function"]
    if isinstance(choice, dict):
        chosen = next(t["function"] for t in tools if t["function"]["name"] == choice["function"]["name"])
    arguments = json.dumps(example(chosen.get("parameters") or {}))
    return ({"id": "call_fake_1", "type": "function", "function": {"name": chosen["name"], "arguments": arguments}},)


def _structured(body: Mapping[str, Any]) -> Any:
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_object":
        return {"answer": "yes"}
    if wanted.get("type") == "json_schema":
        return example(wanted["json_schema"].get("schema") or {})
    return None


def example(schema: Mapping[str, Any]) -> Any:
    """A value that a simple schema allows."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type", "object"):
        case "object":
            return {name: example(part) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [example(schema.get("items", {}))]
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case _:
            return "Rome"
