"""OpenAI's dialect: OpenAI itself and every API that speaks like it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.backends import faults, parameters
from gateway.backends.base import Answer, Ask, DecodeFault, Discovery, UpstreamRequest
from gateway.backends.json import rename_model
from gateway.backends.sse import EventSplitter, EventTooLarge
from gateway.domain.call import Call, Endpoint
from gateway.domain.errors import UpstreamFault
from gateway.domain.listing import ListedModel
from gateway.domain.snapshot import Target, Upstream
from gateway.domain.usage import Usage, from_openai

_DONE = b"data: [DONE]\n\n"
_THOUGHTS = "reasoning_content"  # of an assistant's turn
_NAME = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)


class OpenAI:
    """The dialect of OpenAI's API."""

    kind = "openai"
    endpoints = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS})
    known = parameters.OPENAI
    salts_cache = False
    takes_thoughts = False  # OpenAI has no field for what a model thought; Groq, Mistral and Cerebras refuse it

    def prepare(self, call: Call, target: Target, upstream: Upstream) -> UpstreamRequest:
        """The client's parameters that this upstream takes, with the upstream's model name, usage always asked for."""
        body, dropped = parameters.select(call.body, self.known[call.endpoint], target.parameters)
        body["model"] = target.model
        if target.strip_tools and body.pop("tools", None) is not None:
            body.pop("tool_choice", None)
            body.pop("parallel_tool_calls", None)
            dropped += ("tools",)
        if call.stream and call.endpoint is not Endpoint.EMBEDDINGS and "stream_options" not in target.parameters.drop:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        if call.cache_salt and self.salts_cache and call.endpoint is not Endpoint.TOKENIZE:
            body["cache_salt"] = call.cache_salt  # last, so that nothing a client sends becomes another one
        if not target.developer_role and call.endpoint is Endpoint.CHAT:
            body["messages"] = _system_role(body.get("messages"))
        if call.client.openwebui and not self.takes_thoughts and call.endpoint is Endpoint.CHAT:
            body["messages"] = _without_thoughts(body["messages"])
        return UpstreamRequest(self.path(call, upstream), orjson.dumps(body), dropped=dropped)

    def path(self, call: Call, upstream: Upstream) -> str:
        """The path below the origin, with the upstream's own query."""
        path = upstream.path + call.endpoint.value.removeprefix("/v1")
        return f"{path}?{upstream.query}" if upstream.query else path

    def decoder(self, call: Call, target: Target) -> OpenAIDecoder:
        """One for each stream."""
        return OpenAIDecoder(call.model, call.wants_usage)

    def answer(self, call: Call, target: Target, body: bytes) -> Answer:
        """The upstream's bytes under the name that the client asked for."""
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            raise faults.protocol("The upstream's answer is not a JSON object.")
        if error := parsed.get("error"):
            raise self.fault(call, target, _error_status(error), body)
        return Answer(rename_model(body, parsed, call.model), from_openai(parsed.get("usage")))

    def fault(self, call: Call, target: Target, status: int, body: bytes) -> UpstreamFault:
        """A 4xx is the client's and keeps its message; everything else is ours to explain."""
        message, kind, code, param = _error_fields(body)
        return faults.of_status(call, target, status, message, type=kind, code=code, param=param)

    def discover(self, upstream: Upstream) -> Discovery:
        """`GET /models`."""
        query = f"?{upstream.query}" if upstream.query else ""
        body = yield Ask(f"{upstream.path}/models{query}")
        return parse_models(body)


def parse_models(body: bytes | None) -> tuple[ListedModel, ...]:
    """The models of an OpenAI list (`{"data": […]}` or a bare list).  Raises ValueError where it is none."""
    if body is None:
        raise ValueError("the list of models did not come")
    parsed = orjson.loads(body)
    entries = parsed.get("data") if isinstance(parsed, dict) else parsed
    if not isinstance(entries, list):
        raise ValueError("the answer to GET /models has no list `data`")
    return tuple(
        ListedModel(
            id=entry["id"],
            name=_text(entry.get("name")),
            context_length=_int(entry.get("max_model_len")) or _int(entry.get("context_length")),
            parent=_text(entry.get("parent")),
            root=_text(entry.get("root")),
            created=_int(entry.get("created")),
        )
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
    )


class OpenAIDecoder:
    """Relays the payload bytes of each event as they are; changes only the model's name, and holds the usage back.

    Clients rely on one `id` and one `created` for a whole stream: where an upstream moves on (llama.cpp's `created` is
    the time of each chunk), the first ones stay.
    """

    __slots__ = (
        "_finish",
        "_head",
        "_model",
        "_seen",
        "_splitter",
        "_usage_chunk",
        "_wants_usage",
        "finished",
        "tokens",
        "usage",
    )

    def __init__(self, model: str, wants_usage: bool) -> None:
        self.usage: Usage | None = None
        self.tokens = 0
        self.finished = False
        self._model = model
        self._wants_usage = wants_usage
        self._splitter = EventSplitter()
        self._head: dict[str, Any] = {}
        self._usage_chunk: dict[str, Any] = {}
        self._seen: set[int] = set()
        self._finish: set[int] = set()

    def feed(self, data: bytes) -> bytes:
        """Complete events, reframed as one `data:` line each."""
        try:
            payloads = self._splitter.feed(data)
        except EventTooLarge:
            raise faults.protocol("The upstream sent an event of more than 8 MiB.") from None
        return self._relay(payloads)

    def end(self) -> None:
        """Fine after `[DONE]`, and where each choice has its finish reason (some vendors send no `[DONE]`)."""
        if not self.finished:
            self._relay(self._splitter.flush())
        if not self.finished and not (self._seen and self._seen == self._finish):
            raise faults.protocol("The upstream ended the stream before the answer was complete.")
        self.finished = True

    def tail(self, usage: Usage, extras: Mapping[str, Any]) -> bytes:
        """The usage chunk, if it was asked for, and `[DONE]`."""
        if not self._wants_usage:
            return _DONE
        chunk = self._usage_chunk
        reported = chunk.get("usage") or usage.as_openai()
        event = {**chunk, **self._head, "model": self._model, "choices": [], "usage": {**reported, **extras}}
        return b"data: " + orjson.dumps(event) + b"\n\n" + _DONE

    def _relay(self, payloads: list[bytes]) -> bytes:
        out: list[bytes] = []
        for payload in payloads:
            if self.finished:
                break
            if payload == b"[DONE]":
                self.finished = True
                break
            try:
                raw = self._event(payload)
            except DecodeFault as fault:
                fault.flushed = b"".join(out)
                raise
            if raw:
                out += (b"data: ", raw, b"\n\n")
        return b"".join(out)

    def _event(self, payload: bytes) -> bytes:
        """The payload for the client, or b"" for what it is not to see."""
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise faults.protocol("The upstream sent an event that is not JSON.") from None
        if not isinstance(event, dict):
            raise faults.protocol("The upstream sent an event that is not a JSON object.")
        if event.get("error"):
            raise faults.broke_off(_error_status(event["error"]))
        choices = event.get("choices")
        if choices is None and event.get("usage") is None:
            return b""  # no shape that a client of this API knows
        if choices and not isinstance(choices, list):
            raise faults.protocol("The upstream sent choices that are not a list.")
        if (reported := event.get("usage")) is not None:
            usage = from_openai(reported)
            self.usage = usage or self.usage
            if not choices:
                if usage is not None:
                    self._usage_chunk = _fit(event, self._model) if _unfit(event) else event
                return b""
        head = self._head
        if not head:
            head = self._head = {key: event[key] for key in ("id", "object", "created") if key in event}
        changed = event.get("created") != head.get("created") or event.get("id") != head.get("id") or _unfit(event)
        for choice in choices or ():
            if not isinstance(choice, dict):
                raise faults.protocol("The upstream sent a choice that is not a JSON object.")
            index = choice.get("index", 0)
            if not isinstance(index, int):
                raise faults.protocol("The upstream sent a choice whose index is not an integer.")
            self._seen.add(index)
            if choice.get("finish_reason") is not None:
                self._finish.add(index)
            delta = choice.get("delta")
            if delta:
                if _has_content(delta):
                    self.tokens += 1
            elif choice.get("text"):
                self.tokens += 1
            elif delta is None and "delta" in choice:
                changed = True
        if changed:
            return orjson.dumps(_fit({**event, **head}, self._model))
        return rename_model(payload, event, self._model)


def _has_content(delta: Any) -> bool:
    return isinstance(delta, dict) and bool(
        delta.get("content")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or delta.get("thinking")
        or delta.get("tool_calls")
        or delta.get("refusal")
    )


def _unfit(event: dict[str, Any]) -> bool:
    """Open WebUI drops a chunk, with its text, that has `timings` or `type` null; and it acts on `event` objects,
    which are the gateway's to send and never an upstream's (CVE-2025-64496)."""
    return "event" in event or event.get("timings", 0) is None or event.get("type", 0) is None


def _fit(event: dict[str, Any], model: str) -> dict[str, Any]:
    fit = {k: v for k, v in event.items() if k != "event" and not (v is None and k in ("timings", "type", "choices"))}
    if "model" in fit:
        fit["model"] = model
    fit["choices"] = [
        {k: v for k, v in choice.items() if not (k == "delta" and v is None)} for choice in event.get("choices") or ()
    ]
    return fit


def _system_role(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    return [{**m, "role": "system"} if isinstance(m, dict) and m.get("role") == "developer" else m for m in messages]


def _without_thoughts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what Open WebUI adds to the assistant's turns, whichever model's they were, when its connection is of the
    kind llama.cpp.  Other clients mean what they send."""
    return [{name: value for name, value in m.items() if name != _THOUGHTS} if _THOUGHTS in m else m for m in messages]


def _error_status(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def _error_fields(body: bytes) -> tuple[str, str | None, str | None, str | None]:
    """message, type, code and param of an error body in OpenAI's form, or in one of those seen elsewhere."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", None, None, None
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if isinstance(error, str):
        return error, None, None, None
    if not isinstance(error, dict):
        return "", None, None, None
    message = error.get("message") or error.get("detail")
    return (
        message if isinstance(message, str) else "",
        _name(error.get("type")),
        _name(error.get("code")),
        _name(error.get("param")),
    )


def _name(value: object) -> str | None:
    """An error's type, code or parameter, if it is a name and not a text."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
