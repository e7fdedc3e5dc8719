"""What Ollama takes for a request: Go's `encoding/json` over the structs of its api/types.go, with Go's complaints."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+|0")
_INTEGERS = frozenset(
    "num_ctx num_batch num_gpu main_gpu num_thread num_keep seed num_predict top_k repeat_last_n".split()
)
_FLOATS = frozenset("top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty".split())


class Failed(Exception):
    """An error answer, `{"error": text}`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


_STRUCTS: Mapping[str, Mapping[str, Any]] = {
    "ChatRequest": {
        "model": "string", "messages": ["Message"], "stream": "bool", "keep_alive": "duration", "tools": ["Tool"],
        "options": "map", "think": "think", "truncate": "bool", "shift": "bool", "logprobs": "bool",
        "top_logprobs": "int",
    },
    "GenerateRequest": {
        "model": "string", "prompt": "string", "suffix": "string", "system": "string", "template": "string",
        "stream": "bool", "raw": "bool", "keep_alive": "duration", "images": ["base64"], "options": "map",
        "think": "think", "truncate": "bool", "shift": "bool", "logprobs": "bool", "top_logprobs": "int",
    },
    "EmbedRequest": {
        "model": "string", "keep_alive": "duration", "truncate": "bool", "dimensions": "int", "options": "map",
    },
    "ShowRequest": {"model": "string", "name": "string", "verbose": "bool"},
    "Message": {
        "role": "string", "content": "string", "thinking": "string", "images": ["base64"], "tool_calls": ["ToolCall"],
        "tool_name": "string", "tool_call_id": "string",
    },
    "ToolCall": {"id": "string", "function": "ToolCallFunction"},
    "ToolCallFunction": {"index": "int", "name": "string", "arguments": "map"},
    "Tool": {"type": "string", "function": "ToolFunction"},
    "ToolFunction": {"name": "string", "description": "string", "parameters": "ToolFunctionParameters"},
    "ToolFunctionParameters": {"type": "string", "required": ["string"], "properties": "map"},
}  # fmt: skip
_PLAIN: Mapping[str, tuple[type, ...]] = {"string": (str,), "bool": (bool,), "int": (int,), "map": (dict,)}


def bind(body: bytes, struct: str) -> dict[str, Any]:
    """The request, if Go's `json.Unmarshal` would take it as this struct; raises Failed."""
    if not body.strip():
        raise Failed(400, "missing request body")
    try:
        parsed = json.loads(body)
    except ValueError:
        raise Failed(400, "invalid character looking for beginning of value") from None
    _check(parsed, struct, struct)
    assert isinstance(parsed, dict)
    return parsed


def _check(value: Any, kind: Any, place: str) -> None:
    if value is None:
        return
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise _mismatch(value, place, "[]")
        for item in value:
            _check(item, kind[0], place)
    elif kind in _STRUCTS:
        if not isinstance(value, dict):
            raise _mismatch(value, place, f"api.{kind}")
        for name, expected in _STRUCTS[kind].items():
            _check(value.get(name), expected, f"{place}.{name}")
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (kind == "int" and isinstance(value, bool)):
            raise _mismatch(value, place, kind)
    else:
        _CUSTOM[kind](value, place)


def _mismatch(value: Any, place: str, kind: str) -> Failed:
    said = {bool: "bool", str: "string", list: "array", dict: "object"}.get(type(value), "number")
    return Failed(400, f"json: cannot unmarshal {said} into Go struct field {place} of type {kind}")


def _check_base64(value: Any, place: str) -> None:
    if not isinstance(value, str):
        raise _mismatch(value, place, "[]uint8")
    try:
        base64.b64decode(value, validate=True)
    except binascii.Error:
        raise Failed(400, "illegal base64 data at input byte 0") from None


def _check_duration(value: Any, place: str) -> None:
    if isinstance(value, str):
        if not _DURATION.fullmatch(value):
            raise Failed(400, f'time: invalid duration "{value}"')
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise Failed(400, f"Unsupported type: '{place}'")


def _check_think(value: Any, place: str) -> None:
    if not isinstance(value, bool) and value not in ("high", "medium", "low", "max"):
        raise Failed(400, f'invalid think value: "{value}" (must be "high", "medium", "low", "max", true, or false)')


_CUSTOM = {"base64": _check_base64, "duration": _check_duration, "think": _check_think}


def check_options(options: Mapping[str, Any]) -> None:
    """Options.FromMap; its complaints are answered with 500."""
    for name, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _INTEGERS and not number:
            raise Failed(500, f'option "{name}" must be of type integer')
        if name in _FLOATS and not number:
            raise Failed(500, f'option "{name}" must be of type float32')
        if name == "stop" and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise Failed(500, 'option "stop" must be of an array of strings')
