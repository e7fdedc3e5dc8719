"""OpenAI's chat messages, tools and sampling parameters in Ollama's form, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.domain.errors import InvalidRequest

_DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40};base64,")
_EFFORTS = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip
#: OpenAI's and vLLM's names of what Ollama calls otherwise.
_RENAMED = {"max_tokens": "num_predict", "max_completion_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
_OPTIONS = frozenset(
    """temperature top_p top_k min_p typical_p seed frequency_penalty presence_penalty repeat_penalty repeat_last_n
    num_keep num_predict num_ctx""".split()
)


def chat_request(body: Mapping[str, Any], strip_tools: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body of /api/chat without model and options, and the parameters that found no place in it."""
    request: dict[str, Any] = {"messages": [_message(m, body["messages"]) for m in body["messages"]]}
    lost: tuple[str, ...] = ()
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools and choice != "none":
        if strip_tools:
            lost += ("tools",)
        else:
            request["tools"] = tools
            if choice not in (None, "auto"):
                lost += ("tool_choice",)  # Ollama lets the model decide
    if (form := _format(body.get("response_format"), body.get("format"))) is not None:
        request["format"] = form
    if body.get("logprobs"):
        request["logprobs"] = True
        request["top_logprobs"] = body.get("top_logprobs") or 0
    if "think" in body:
        request["think"] = body["think"]
    elif (effort := body.get("reasoning_effort")) in _EFFORTS:
        request["think"] = _EFFORTS[effort]
    return request, lost


def options_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters as Ollama's `options`."""
    options = {}
    for name, value in body.items():
        option = _RENAMED.get(name, name)
        if option in _OPTIONS and value is not None:
            options[option] = value
    stop = body.get("stop")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    return options


def delta_of(part: Mapping[str, Any], tools: int) -> tuple[dict[str, Any], int, int]:
    """One of Ollama's messages as OpenAI's delta: the delta, how many content-bearing pieces it has, and how many tool
    calls there have been with it.  Ollama sends each tool call whole."""
    message = part.get("message")
    delta: dict[str, Any] = {}
    if not isinstance(message, dict):
        return delta, 0, tools
    if message.get("content"):
        delta["content"] = message["content"]
    if message.get("thinking"):
        delta["reasoning_content"] = message["thinking"]
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        calls.append(
            {
                "index": tools,
                "id": call.get("id") or f"call_{tools}",
                "type": "function",
                "function": {
                    "name": function.get("name", ""),
                    "arguments": orjson.dumps(function.get("arguments") or {}).decode(),
                },
            }
        )
        tools += 1
    if calls:
        delta["tool_calls"] = calls
    return delta, 1 if delta else 0, tools


def logprobs_of(part: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ollama's log probabilities as OpenAI's."""
    found = part.get("logprobs")
    if not isinstance(found, list) or not found:
        return None
    return {"content": [{**_logprob(one), "top_logprobs": [_logprob(t) for t in one.get("top_logprobs") or ()]}
                        for one in found], "refusal": None}  # fmt: skip


def _logprob(one: Mapping[str, Any]) -> dict[str, Any]:
    token = one.get("token", "")
    return {"token": token, "logprob": one.get("logprob"), "bytes": one.get("bytes") or list(token.encode())}


def _format(response_format: Any, own: Any) -> Any:
    if not isinstance(response_format, dict):
        return own
    if response_format.get("type") == "json_object":
        return "json"
    if response_format.get("type") == "json_schema":
        schema = response_format.get("json_schema")
        return schema.get("schema") if isinstance(schema, dict) else None
    return None


def _message(message: Mapping[str, Any], history: list[Mapping[str, Any]]) -> dict[str, Any]:
    role = message["role"]
    text, images = _content(message.get("content"))
    out: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": text}
    if images:
        out["images"] = images
    if thinking := message.get("reasoning_content") or message.get("reasoning"):
        out["thinking"] = thinking
    if calls := message.get("tool_calls"):
        out["tool_calls"] = [_tool_call(call) for call in calls]
    if role == "tool":
        identity = message.get("tool_call_id")
        if name := message.get("name") or _tool_name(identity, history):
            out["tool_name"] = name
        if identity:
            out["tool_call_id"] = identity
    return out


def _content(content: Any) -> tuple[str, list[str]]:
    """Text and images (bare base64, as they came: never decoded and never resized)."""
    if content is None or isinstance(content, str):
        return content or "", []
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            source = part.get("image_url")
            url = source.get("url") if isinstance(source, dict) else source
            match = _DATA_URL.match(url) if isinstance(url, str) else None
            if match is None or not isinstance(url, str):
                raise InvalidRequest(
                    "Images must be sent as data URLs (data:image/…;base64,…); the gateway fetches nothing.",
                    param="messages", code="invalid_image_url",
                )  # fmt: skip
            images.append(url[match.end() :])
        else:
            raise InvalidRequest("A message part must be text or image_url for this model.", param="messages")
    return "\n".join(texts), images


def _tool_call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest("Each of 'tool_calls' needs a function with a name.", param="messages")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            raise InvalidRequest("A tool call's 'arguments' must be JSON.", param="messages") from None
    out: dict[str, Any] = {"function": {"name": function["name"], "arguments": arguments}}
    if isinstance(call.get("id"), str):
        out["id"] = call["id"]
    return out


def _tool_name(identity: Any, history: list[Mapping[str, Any]]) -> str | None:
    for message in history:
        for call in message.get("tool_calls") or ():
            if isinstance(call, dict) and call.get("id") == identity:
                name = (call.get("function") or {}).get("name")
                return name if isinstance(name, str) else None
    return None
