"""Ollama's native dialect.

Its own `/v1` caps the context in silence and lacks parameters, so that the native API is spoken: `/api/chat`,
`/api/generate`, `/api/embed`, `/api/tags`, `/api/show` (api/types.go and docs/api.md of Ollama, August 2026).  What
manages models (pull, push, create, copy, delete) has no way through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from gateway.backends import parameters
from gateway.backends.base import Answer, Ask, DecodeFault, Discovery, UpstreamRequest
from gateway.backends.ollama_chat import chat_request, delta_of, logprobs_of, options_of
from gateway.backends.openai import as_base64
from gateway.domain.call import Call, Endpoint
from gateway.domain.errors import InvalidRequest, Reason, UpstreamFault
from gateway.domain.listing import ListedModel
from gateway.domain.snapshot import Target, Upstream
from gateway.domain.usage import Usage, from_openai

_PATHS = {
    Endpoint.CHAT: "/api/chat",
    Endpoint.COMPLETIONS: "/api/generate",
    Endpoint.EMBEDDINGS: "/api/embed",
}
_MAX_LINE = 8 * 1024 * 1024  # bytes of one streamed object
_MAX_SHOWN = 256  # models that are asked for their details in one discovery
_TOO_LONG = ("exceeds the context length", "exceeds the available context", "exceed context", "context length exceeded",
             "exceeds maximum context")  # fmt: skip


class Ollama:
    """The dialect of Ollama's native API."""

    kind = "ollama"
    endpoints = frozenset(_PATHS)

    def prepare(self, call: Call, target: Target, upstream: Upstream) -> UpstreamRequest:
        """OpenAI's request as Ollama's.  `truncate` and `shift` are off: a prompt that does not fit is an error, and
        never cut in silence."""
        sent, dropped = parameters.select(call.body, parameters.OLLAMA[call.endpoint], target.parameters)
        if (sent.get("n") or 1) != 1:
            raise InvalidRequest(f"'n' must be 1: the model '{call.model}' gives one answer at a time.", param="n")
        if call.endpoint is Endpoint.CHAT:
            body, lost = chat_request(sent, target.strip_tools)
            dropped += lost
        elif call.endpoint is Endpoint.COMPLETIONS:
            body = {"prompt": _one_text(sent, "prompt"), "raw": True}
            if sent.get("suffix"):
                body |= {"suffix": sent["suffix"], "raw": False}
        else:
            body = {"input": _texts(sent, "input")}
            if sent.get("dimensions"):
                body["dimensions"] = sent["dimensions"]
        options = {"num_ctx": upstream.options.get("num_ctx"), **options_of(sent)}
        body |= {
            "model": target.model,
            "truncate": False,
            "options": {name: value for name, value in options.items() if value is not None},
        }
        if call.endpoint is not Endpoint.EMBEDDINGS:
            body |= {"stream": call.stream, "shift": False}
            think = upstream.options.get("think")
            if "think" not in body and think is not None:
                body["think"] = think
        keep_alive = sent.get("keep_alive", upstream.options.get("keep_alive"))
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        return UpstreamRequest(upstream.path + _PATHS[call.endpoint], orjson.dumps(body), dropped=dropped)

    def decoder(self, call: Call, target: Target) -> OllamaDecoder:
        """One for each stream."""
        return OllamaDecoder(call)

    def answer(self, call: Call, target: Target, body: bytes) -> Answer:
        """Ollama's answer as OpenAI's."""
        parsed = _object(body)
        if error := parsed.get("error"):
            raise self.fault(call, target, 500, orjson.dumps({"error": error}))
        if call.endpoint is Endpoint.EMBEDDINGS:
            return _embeddings(call, parsed)
        if not parsed.get("done"):
            raise _protocol("The upstream's answer is not complete.")
        usage = _usage(parsed)
        choice = _whole_choice(call, parsed)
        answer = {**_head(call, parsed, whole=True), "choices": [choice], "usage": usage.as_openai()}
        return Answer(orjson.dumps(answer), usage)

    def fault(self, call: Call, target: Target, status: int, body: bytes) -> UpstreamFault:
        """Ollama says `{"error": "text"}`; a prompt that is too long is the client's error under several statuses."""
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            parsed = {}
        text = parsed.get("error") if isinstance(parsed, dict) else None
        message = text if isinstance(text, str) else ""
        if any(words in message for words in _TOO_LONG):
            return UpstreamFault(
                f"The prompt is longer than the context of '{call.model}'. Send less, or have the operator raise "
                "options.num_ctx of its upstream.",
                reason=Reason.UPSTREAM_STATUS, retryable=False, status=400, type="invalid_request_error",
                code="context_length_exceeded", param="messages" if call.endpoint is Endpoint.CHAT else None,
                upstream_status=status,
            )  # fmt: skip
        if status in (401, 403):
            return UpstreamFault(
                f"The upstream '{target.upstream}' refused the gateway's key; the operator must mend it.",
                reason=Reason.UPSTREAM_STATUS, retryable=True, upstream_status=status, should_retry=False,
            )  # fmt: skip
        if status == 404:
            return UpstreamFault(
                f"The model '{call.model}' does not exist in its upstream any more.", reason=Reason.UPSTREAM_STATUS,
                retryable=False, status=404, type="invalid_request_error", code="model_not_found", param="model",
                upstream_status=status,
            )  # fmt: skip
        if status in (408, 429) or status >= 500 or status < 400:
            return UpstreamFault(
                f"The upstream '{target.upstream}' answered with status {status}.",
                reason=Reason.UPSTREAM_STATUS, retryable=True, status=status if status in (429, 503, 504) else 502,
                type="rate_limit_error" if status == 429 else None, upstream_status=status,
            )  # fmt: skip
        return UpstreamFault(
            message.replace(target.model, call.model)[:500] or f"The upstream refused the request (status {status}).",
            reason=Reason.UPSTREAM_STATUS, retryable=False, status=400, type="invalid_request_error",
            code="upstream_refused", upstream_status=status,
        )  # fmt: skip

    def discover(self, upstream: Upstream) -> Discovery:
        """`/api/tags`, and `/api/show` for what a model can do."""
        body = yield Ask(upstream.path + "/api/tags")
        if body is None:
            raise ValueError("the list of models did not come")
        models = _object(body).get("models")
        if not isinstance(models, list):
            raise ValueError("the answer to GET /api/tags has no list `models`")
        found = []
        for entry in models[:_MAX_SHOWN]:
            name = (entry.get("model") or entry.get("name")) if isinstance(entry, dict) else None
            if isinstance(name, str) and name:
                details = yield Ask(upstream.path + "/api/show", orjson.dumps({"model": name}))
                found.append(_listed(name, details, upstream.options.get("num_ctx")))
        return tuple(found)


def _listed(name: str, details: bytes | None, num_ctx: Any) -> ListedModel:
    shown = _object(details) if details else {}
    known = shown.get("capabilities")
    capabilities = known if isinstance(known, list) else []
    info = shown.get("model_info")
    lengths = [v for k, v in info.items() if k.endswith(".context_length")] if isinstance(info, dict) else []
    trained = next((length for length in lengths if isinstance(length, int)), None)
    return ListedModel(
        id=name,
        # Without num_ctx Ollama chooses by the memory it finds, and says nowhere what it chose.
        context_length=min(num_ctx, trained or num_ctx) if isinstance(num_ctx, int) else None,
        tools="tools" in capabilities if capabilities else None,
        vision="vision" in capabilities if capabilities else None,
        embedding="embedding" in capabilities and "completion" not in capabilities,
    )


class OllamaDecoder:
    """NDJSON in, OpenAI's events out."""

    __slots__ = ("_call", "_first", "_head", "_rest", "_tools", "finished", "tokens", "usage")

    def __init__(self, call: Call) -> None:
        self.usage: Usage | None = None
        self.tokens = 0
        self.finished = False
        self._call = call
        self._rest = bytearray()
        self._head: dict[str, Any] = {}
        self._first = True
        self._tools = 0

    def feed(self, data: bytes) -> bytes:
        """Complete events.  Raises DecodeFault."""
        lines, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._rest += data
            if len(self._rest) > _MAX_LINE:
                raise _protocol("The upstream sent an object of more than 8 MiB.")
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
        if not self.finished and self._rest:
            self.feed(b"\n")
        if not self.finished:
            raise _protocol("The upstream ended the stream before the answer was complete.")

    def tail(self, usage: Usage, extras: Mapping[str, Any]) -> bytes:
        """The usage chunk, if it was asked for, and `[DONE]`."""
        done = b"data: [DONE]\n\n"
        if not self._call.wants_usage:
            return done
        return _event({**self._head, "choices": [], "usage": {**usage.as_openai(), **extras}}) + done

    def _events(self, line: bytes) -> list[bytes]:
        part = _object(line)
        if part.get("error"):
            raise DecodeFault(
                "The upstream reported an error while it was answering.",
                reason=Reason.UPSTREAM_STATUS, retryable=True, upstream_status=500,
            )  # fmt: skip
        if not self._head:
            self._head = _head(self._call, part, whole=False)
        events = []
        delta, pieces, self._tools = delta_of(part, self._tools)
        if self._call.endpoint is Endpoint.COMPLETIONS:
            text = part.get("response") or ""
            pieces = 1 if text else 0
            if text:
                events.append(self._chunk({"text": text}, None, part))
        elif delta or self._first:
            if self._first:
                delta = {"role": "assistant", "content": "", **delta}
            events.append(self._chunk({"delta": delta}, None, part))
        self._first = False
        self.tokens += pieces
        if part.get("done"):
            self.finished = True
            self.usage = _usage(part)
            ending: dict[str, Any] = {"text": ""} if self._call.endpoint is Endpoint.COMPLETIONS else {"delta": {}}
            events.append(self._chunk(ending, _finish_reason(part, self._tools > 0), {}))
        return events

    def _chunk(self, content: dict[str, Any], finish: str | None, part: dict[str, Any]) -> bytes:
        choice = {"index": 0, **content, "logprobs": logprobs_of(part), "finish_reason": finish}
        return _event({**self._head, "choices": [choice]})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _head(call: Call, part: dict[str, Any], whole: bool) -> dict[str, Any]:
    number = call.request_id.removeprefix("req_")
    if call.endpoint is Endpoint.COMPLETIONS:
        identity = {"id": f"cmpl-{number}", "object": "text_completion"}
    else:
        identity = {"id": f"chatcmpl-{number}", "object": "chat.completion" if whole else "chat.completion.chunk"}
    return {**identity, "created": _unix_time(part.get("created_at")), "model": call.model}


def _whole_choice(call: Call, parsed: dict[str, Any]) -> dict[str, Any]:
    if call.endpoint is Endpoint.COMPLETIONS:
        content: dict[str, Any] = {"text": parsed.get("response") or ""}
        tools = 0
    else:
        delta, _, tools = delta_of(parsed, 0)
        for tool_call in delta.get("tool_calls", ()):
            del tool_call["index"]  # a whole answer's calls have no index
        content = {"message": {"role": "assistant", "content": None if tools else "", **delta}}
    return {"index": 0, **content, "logprobs": logprobs_of(parsed), "finish_reason": _finish_reason(parsed, tools > 0)}


def _finish_reason(part: dict[str, Any], tools: bool) -> str:
    if part.get("done_reason") == "length":
        return "length"
    return "tool_calls" if tools else "stop"


def _usage(part: dict[str, Any]) -> Usage:
    """Counters that are 0 are left out of Ollama's answers; what is no count is not believed."""
    counts = {"prompt_tokens": part.get("prompt_eval_count", 0), "completion_tokens": part.get("eval_count", 0)}
    return from_openai(counts) or Usage(estimated=True)


def _embeddings(call: Call, parsed: dict[str, Any]) -> Answer:
    vectors = parsed.get("embeddings")
    if not isinstance(vectors, list):
        raise _protocol("The upstream's answer has no embeddings.")
    base64 = call.body.get("encoding_format") == "base64"
    usage = _usage({"prompt_eval_count": parsed.get("prompt_eval_count", 0)})
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": as_base64(vector) if base64 else vector}
            for index, vector in enumerate(vectors)
        ],
        "model": call.model,
        "usage": {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt},
    }
    return Answer(orjson.dumps(answer), usage)


def _one_text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise InvalidRequest(f"'{name}' must be one text for this model.", param=name)
    return value


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    value = body.get(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"'{name}' must be a text or a list of texts for this model, not tokens.", param=name)
    return texts


def _object(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise _protocol("The upstream sent something that is not a JSON object.")
    return parsed


def _protocol(message: str) -> DecodeFault:
    return DecodeFault(message, reason=Reason.UPSTREAM_PROTOCOL, retryable=True)


def _unix_time(value: Any) -> int:
    """Ollama's `created_at` (RFC 3339, nanoseconds) as OpenAI's `created`; 0 where it is none."""
    if not isinstance(value, str):
        return 0
    try:
        return int(datetime.fromisoformat(value).timestamp())
    except (ValueError, OverflowError):
        return 0
