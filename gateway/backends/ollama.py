"""Ollama's native dialect.

Its own `/v1` caps the context in silence and lacks parameters, so that the native API is spoken: `/api/chat`,
`/api/generate`, `/api/embed`, `/api/tags`, `/api/show` (server/routes.go and docs/api.md of Ollama, August 2026).  What
manages models (pull, push, create, copy, delete) has no way through here.

Ollama cuts a prompt that does not fit, unless `truncate` is false, which it knows since 0.12.6 (October 2025).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.backends import faults, ollama_answer, ollama_request, parameters
from gateway.backends.base import Answer, Ask, Discovery, UpstreamRequest
from gateway.backends.ollama_answer import OllamaDecoder, parse, unix_time
from gateway.domain.call import Call, Endpoint
from gateway.domain.errors import InvalidRequest, Reason, UpstreamFault
from gateway.domain.listing import ListedModel
from gateway.domain.snapshot import Target, Upstream

_PATHS = {
    Endpoint.CHAT: "/api/chat",
    Endpoint.COMPLETIONS: "/api/generate",
    Endpoint.EMBEDDINGS: "/api/embed",
}
_PROMPTS = {Endpoint.CHAT: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}
_MAX_SHOWN = 256  # models that are asked for their details in one discovery
#: The words for a prompt that does not fit: of Ollama, of its llama-server and of its MLX runner, under 400 and 500.
_TOO_LONG = re.compile(r"(?:exceeds?|longer than|too large)\b.{0,80}\b(?:context|batch size)|exceed_context_size")
_LACKS = re.compile(r"does not support (image \w+|\w+)|(\w+ input) is not supported")


class Ollama:
    """The dialect of Ollama's native API."""

    kind = "ollama"
    endpoints = frozenset(_PATHS)

    def prepare(self, call: Call, target: Target, upstream: Upstream) -> UpstreamRequest:
        """OpenAI's request as Ollama's.  `truncate` and `shift` are off: a conversation that does not fit is an error,
        or ends with "length", and is never cut in silence."""
        sent, dropped = parameters.select(call.body, parameters.OLLAMA[call.endpoint], target.parameters)
        if (sent.get("n") or 1) != 1:
            raise InvalidRequest(f"'n' must be 1: the model '{call.model}' gives one answer at a time.", param="n")
        if call.endpoint is Endpoint.CHAT:
            body, lost = ollama_request.chat(sent, target)
        elif call.endpoint is Endpoint.COMPLETIONS:
            body, lost = ollama_request.generate(sent)
        else:
            body, lost = ollama_request.embed(sent)
        given = upstream.options
        options = {"num_ctx": given.get("num_ctx"), **ollama_request.options(sent)}
        body |= {
            "model": target.model,
            "truncate": False,
            "options": {name: value for name, value in options.items() if value is not None},
        }
        if call.endpoint is not Endpoint.EMBEDDINGS:
            body |= {"stream": call.stream, "shift": False}
        if call.endpoint is Endpoint.CHAT and "think" in given and not target.strip_thinking:
            body.setdefault("think", given["think"])
        keep_alive = sent.get("keep_alive", given.get("keep_alive"))
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        path = _path(upstream, _PATHS[call.endpoint])
        return UpstreamRequest(path, orjson.dumps(body), dropped=dropped + lost)

    def decoder(self, call: Call, target: Target) -> OllamaDecoder:
        """One for each stream."""
        return OllamaDecoder(call)

    def answer(self, call: Call, target: Target, body: bytes) -> Answer:
        """Ollama's answer as OpenAI's."""
        parsed = parse(body)
        if parsed.get("error"):
            raise self.fault(call, target, 500, body)
        if call.endpoint is Endpoint.EMBEDDINGS:
            return ollama_answer.embeddings(call, parsed)
        return ollama_answer.whole(call, parsed)

    def fault(self, call: Call, target: Target, status: int, body: bytes) -> UpstreamFault:
        """Ollama says `{"error": "text"}`, and some mistakes of a client under the status of its own."""
        text = _error_text(body)
        if _TOO_LONG.search(text):
            return _clients(
                f"The prompt is longer than the context of '{call.model}'. Send less, or have the operator raise "
                f"options.num_ctx of the upstream '{target.upstream}'.",
                status, code="context_length_exceeded", param=_PROMPTS[call.endpoint],
            )  # fmt: skip
        if (lacking := _LACKS.search(text)) is not None:
            what = lacking[1] or lacking[2]
            return _clients(f"The model '{call.model}' does not support {what}.", status, code="unsupported_value")
        if status == 404:  # it was removed after it was listed
            gone = f"The model '{call.model}' does not exist in the upstream '{target.upstream}' any more."
            return _clients(gone, status, code="model_not_found", param="model", retryable=True)
        return faults.of_status(call, target, status, text)

    def discover(self, upstream: Upstream) -> Discovery:
        """`/api/tags`, and for older servers, whose list does not say what a model can do, `/api/show`."""
        body = yield Ask(_path(upstream, "/api/tags"))
        if body is None:
            raise ValueError("the list of models did not come")
        models = parse(body).get("models")
        if not isinstance(models, list):
            raise ValueError("the answer to GET /api/tags has no list `models`")
        found = []
        for entry in models[:_MAX_SHOWN]:
            name = (entry.get("model") or entry.get("name")) if isinstance(entry, dict) else None
            if not isinstance(name, str) or not name:
                continue
            shown: dict[str, Any] = {}
            if not entry.get("capabilities"):
                details = yield Ask(_path(upstream, "/api/show"), orjson.dumps({"model": name}))
                shown = parse(details) if details else {}
            found.append(_listed(name, {**entry, **shown}, upstream.options.get("num_ctx")))
        return tuple(found)


def _path(upstream: Upstream, path: str) -> str:
    return f"{upstream.path}{path}?{upstream.query}" if upstream.query else upstream.path + path


def _clients(
    message: str, upstream_status: int, *, code: str, param: str | None = None, retryable: bool = False
) -> UpstreamFault:
    return UpstreamFault(
        message, reason=Reason.UPSTREAM_STATUS, retryable=retryable, status=404 if upstream_status == 404 else 400,
        type="invalid_request_error", code=code, param=param, upstream_status=upstream_status,
    )  # fmt: skip


def _error_text(body: bytes) -> str:
    """The text of an error.  Ollama passes its llama-server's errors on as JSON within the text."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    error = parsed.get("error") if isinstance(parsed, dict) else None
    if isinstance(error, dict):
        message = error.get("message")
        return message if isinstance(message, str) else ""
    if not isinstance(error, str):
        return ""
    return _error_text(error.encode()) or error if error.startswith("{") else error


def _listed(name: str, said: Mapping[str, Any], num_ctx: Any) -> ListedModel:
    known = said.get("capabilities")
    capabilities = known if isinstance(known, list) else []
    trained = _trained_context(said)
    return ListedModel(
        id=name,
        # Without num_ctx Ollama chooses by the memory it finds, and says nowhere what it chose.
        context_length=min(num_ctx, trained or num_ctx) if isinstance(num_ctx, int) else None,
        tools="tools" in capabilities if capabilities else None,
        vision="vision" in capabilities if capabilities else None,
        thinking="thinking" in capabilities if capabilities else None,
        embedding="embedding" in capabilities and "completion" not in capabilities,
        created=unix_time(said.get("modified_at")) or None,
    )


def _trained_context(said: Mapping[str, Any]) -> int | None:
    """The longest context that the model was trained for, from the list or from the details."""
    details, info = said.get("details"), said.get("model_info")
    lengths = [details.get("context_length")] if isinstance(details, dict) else []
    if isinstance(info, dict):
        lengths += [value for key, value in info.items() if key.endswith(".context_length")]
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)
